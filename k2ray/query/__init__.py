"""Questions about the tables: a validated request, a pinned snapshot, the files that matter, exact answers."""
