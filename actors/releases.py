"""Releases: what a system ran, kept so that it can be gone back to. Files only; knows nothing of Ray.

A *release* is code and settings together. Its folder is named by a digest of both and holds the packages `k2ray`,
`actors` and `serve` as they were importable when it was made, so that a rollback runs the old code although
site-packages has moved on. What it does not hold: Python itself and the libraries; their versions are written down.

```
<data_dir>/releases/
  <digest>/          k2ray/ actors/ serve/ settings.json (0600) release.json
  history.json       who started what, when, how it ended (`actors/history.py`)
```

Next in the flow: `actors/history.py` remembers which release ran when; `actors/deploy.py` plans the way from one to
another.
"""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actors.wanted import write_private
from k2ray.errors import BadInput, OperatorNeeded
from k2ray.layout import DataDir
from k2ray.settings import Settings

PACKAGES = ("k2ray", "actors", "serve")

INSTALLED = "installed"
"""What `running_code` says of code that belongs to no release."""

_DIGEST_LENGTH = 12


@dataclass(frozen=True)
class StoredRelease:
    """A release on disk.

    Attributes:
        folder: What its packages are imported from.
        digest: Of code and settings.
        code: Of the code alone.
        version: Of the k2ray distribution.
        made_at: ISO-8601, UTC.
        made_by: user@host.
        actors: Logical name -> `module:Class`, in starting order: what it wants to live.
        libraries: Name -> version that were installed when it was made.
    """

    folder: Path
    digest: str
    code: str
    version: str
    made_at: str
    made_by: str
    actors: Mapping[str, str] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Return the settings as they were loaded, a local broker's address not among them, secrets among them.

        Plain values: this code may not know every setting of an older or newer release.
        """
        plain: dict[str, Any] = json.loads((self.folder / "settings.json").read_text(encoding="utf-8"))
        return plain


def running_code() -> str:
    """Return the digest of the release that this process imported its code from, or `installed`."""
    folder = Path(__file__).resolve().parents[1]
    return folder.name if (folder / "release.json").exists() else INSTALLED


def who() -> str:
    """Return who works here: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def now() -> str:
    """Return the time for records: ISO-8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class ReleaseStore:
    """The releases of one data folder.

    Args:
        layout: Where.
        sources: Package -> its folder; None takes what is importable now.
    """

    def __init__(self, layout: DataDir, sources: Mapping[str, Path] | None = None) -> None:
        self._folder = layout.releases
        self._sources = dict(sources) if sources is not None else _importable()

    def digest_now(self, settings: Settings) -> str:
        """Return the digest that `make` would give, without writing anything."""
        return _combine(digest_of(self._sources), json.loads(settings.to_json()))

    def code_now(self) -> str:
        """Return the digest of the importable code alone."""
        return digest_of(self._sources)

    def make(self, settings: Settings, actors: Mapping[str, str]) -> StoredRelease:
        """Copy the importable code and the settings, or find the copy that is there already.

        Args:
            settings: As they were loaded.
            actors: Logical name -> `module:Class` that these settings ask for.

        Raises:
            OperatorNeeded: The code changed while it was copied; do it again once the installation is over.
        """
        code = digest_of(self._sources)
        digest = _combine(code, json.loads(settings.to_json()))
        target = self._folder / digest
        if target.exists():
            try:
                return self.open(digest)
            except OperatorNeeded:
                shutil.rmtree(target)  # damaged; what is importable now is the same and whole
        self._folder.mkdir(parents=True, exist_ok=True)
        building = self._folder / f".{digest}.{os.getpid()}"
        shutil.rmtree(building, ignore_errors=True)
        for package, source in self._sources.items():
            for path in _files(source):
                copy = building / package / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        if digest_of({package: building / package for package in self._sources}) != code:
            shutil.rmtree(building)
            raise OperatorNeeded("the installed code changed while it was copied; deploy when its installation is over")
        write_private(building / "settings.json", settings.to_json())
        made = StoredRelease(target, digest, code, _version(), now(), who(), dict(actors), _libraries())
        described = {key: value for key, value in asdict(made).items() if key != "folder"}
        write_private(building / "release.json", json.dumps(described, indent=2) + "\n")
        building.rename(target)
        return made

    def open(self, name: str) -> StoredRelease:
        """Return the release of this digest (its beginning is enough if only one begins so), checked to be whole.

        Raises:
            BadInput: There is none, or more than one begins so.
            OperatorNeeded: Its files were changed.
        """
        found = [digest for digest in self.digests() if digest.startswith(name)] if name else []
        if len(found) != 1:
            kept = ", ".join(self.digests()) or "none"
            raise BadInput(f"{'no' if not found else 'more than one'} release {name!r}; kept are: {kept}")
        folder = self._folder / found[0]
        try:
            described = json.loads((folder / "release.json").read_text(encoding="utf-8"))
            release = StoredRelease(folder, **described)
            packages = {path.name: path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"}
            whole = _combine(digest_of(packages), release.settings()) == found[0]
        except (OSError, ValueError, TypeError) as error:
            raise OperatorNeeded(f"release {found[0]} cannot be read ({error}): choose another one") from error
        if not whole:
            raise OperatorNeeded(f"release {found[0]} is not what was stored in {folder}: choose another one")
        return release

    def digests(self) -> list[str]:
        """Return the digests of all that is kept, the newest last."""
        if not self._folder.exists():
            return []
        folders = [path for path in self._folder.iterdir() if re.fullmatch(r"[0-9a-f]{12}", path.name)]
        return [path.name for path in sorted(folders, key=lambda path: path.stat().st_mtime)]

    def prune(self, needed: Iterable[str], kept: int) -> list[str]:
        """Remove all but the first `kept` of `needed` (the most needed first); returns what went. 2 MB each."""
        keep = list(dict.fromkeys(needed))[:kept]
        gone = [digest for digest in self.digests() if digest not in keep]
        for digest in gone:
            shutil.rmtree(self._folder / digest, ignore_errors=True)
        return gone


def digest_of(packages: Mapping[str, Path]) -> str:
    """Return a digest of the packages' files: names and contents, not times."""
    whole = hashlib.sha256()
    for package, folder in sorted(packages.items()):
        for path in _files(folder):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{package}/{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return whole.hexdigest()[:_DIGEST_LENGTH]


def library_changes(release: StoredRelease) -> list[str]:
    """Say which libraries are not the ones that the release was made with: code comes back, libraries do not."""
    present = _libraries()
    return [
        f"{name} {version} -> {present.get(name, 'gone')}"
        for name, version in sorted(release.libraries.items())
        if present.get(name) != version
    ]


def _combine(code: str, settings: Mapping[str, Any]) -> str:
    plain = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(f"{code}\n{plain}".encode()).hexdigest()[:_DIGEST_LENGTH]


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith((".pyc", ".pyo")):
            yield path


def _importable() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise OperatorNeeded(f"package {package} cannot be imported: install k2ray again")
        found[package] = Path(spec.origin).resolve().parent
    return found


def _version() -> str:
    try:
        return importlib.metadata.version("k2ray")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _libraries() -> dict[str, str]:
    """Return the versions of what k2ray says it needs, options left out."""
    try:
        needed = importlib.metadata.requires("k2ray") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    names = [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in needed if "extra ==" not in line]
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
