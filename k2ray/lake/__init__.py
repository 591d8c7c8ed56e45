"""The lakehouse: catalog and tables, staged files, fenced commits, the writer that owns a table, and its upkeep."""
