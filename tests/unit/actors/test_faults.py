from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from actors.faults import FaultPoints


def test_points_do_nothing_unless_they_are_armed(tmp_path: Path) -> None:
    points = FaultPoints(tmp_path, "writer:trades")
    points("staged")
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "writer:quotes@staged").write_text("kill")
    (tmp_path / "faults" / "writer:trades@inside_commit").write_text("kill")
    points("staged")


def test_an_armed_point_kills_once(tmp_path: Path) -> None:
    (tmp_path / "faults").mkdir()
    armed = tmp_path / "faults" / "writer:trades@staged"
    armed.write_text("kill\n")
    code = (
        f"import pathlib, actors.faults as f; f.FaultPoints(pathlib.Path({str(tmp_path)!r}), 'writer:trades')('staged')"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert not armed.exists()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
