"""Ray actors: shells that give k2ray's objects a process, a name and a supervisor."""
