"""Copies of our packages, for tests of releases: new code to deploy, and code that moves on under a system."""

from __future__ import annotations

import shutil
from pathlib import Path

from actors.releases import PACKAGES
from tests.support.ray_cluster import ROOT


def copy_code(folder: Path, marker: str, source: Path = ROOT) -> Path:
    """Copy the packages into a folder and make them differ by a marker; returns the folder."""
    for package in PACKAGES:
        shutil.copytree(source / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "k2ray" / "marker.py").write_text(f'"""Only tests have this."""\n\nMARKER = {marker!r}\n')
    return folder
