"""Where things lie below `data_dir`; the one place that knows file names.

```
<data_dir>/
  broker/      the local Kafka: its log, server.properties, broker.json (pid, ports)
  warehouse/   Iceberg data and metadata      catalog.db   SQLite catalog
  spool/       batches that Kafka has not taken, a folder a feed
  scratch/     files without a name while upkeep merges what does not fit into memory
  logs/        a JSON-lines file an actor; samples of all, a file a day (`soak/samples.py`)
  run/         pid files, addresses, Ray's token, wanted.json
  releases/    code and settings that ran, to go back to; their history
```
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataDir:
    """Paths below one `data_dir`; nothing is created by asking for them."""

    root: Path

    @property
    def broker(self) -> Path:
        """The local broker's folder."""
        return self.root / "broker"

    @property
    def warehouse(self) -> Path:
        """Iceberg's files, unless `lake.warehouse` says otherwise."""
        return self.root / "warehouse"

    @property
    def catalog(self) -> Path:
        """The SQLite catalog, unless `lake.catalog.uri` says otherwise."""
        return self.root / "catalog.db"

    @property
    def spool(self) -> Path:
        """One folder a feed below it."""
        return self.root / "spool"

    @property
    def scratch(self) -> Path:
        """Where upkeep puts rows aside; always empty to look at."""
        return self.root / "scratch"

    @property
    def logs(self) -> Path:
        """One JSON-lines file an actor."""
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Pid files, addresses, tokens: what a running system is found by."""
        return self.root / "run"

    @property
    def releases(self) -> Path:
        """Copies of code and settings, and the history of what ran (`actors/releases.py`)."""
        return self.root / "releases"

    @property
    def ray_temp(self) -> Path:
        """Ray's own folder: outside `data_dir`, since its socket paths may not pass 107 bytes."""
        return Path(tempfile.gettempdir()) / f"k2ray-{self.digest}"

    @property
    def digest(self) -> str:
        """A short name that belongs to this folder alone; also part of the Ray namespace."""
        return hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:10]

    @property
    def namespace(self) -> str:
        """The Ray namespace of the system that lives in this folder."""
        return f"k2ray-{self.digest}"
