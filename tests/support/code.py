"""Copies of our packages, for tests of releases: what is installed may change under them, and a new release needs new code."""

from __future__ import annotations

import shutil
from pathlib import Path

from actors.releases import PACKAGES
from tests.support.ray_cluster import ROOT


def copy_code(folder: Path, marker: str) -> Path:
    """Copy the packages into a folder and make them differ by a marker; returns the folder."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "k2ray" / "marker.py").write_text(f'"""Only tests have this."""\n\nMARKER = {marker!r}\n')
    return folder
