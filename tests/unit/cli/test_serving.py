from __future__ import annotations

from pathlib import Path

import pytest
import ray.serve
from ray.exceptions import ActorDiedError, RayError

from k2ray.cli.serving import start_serving
from k2ray.cli.system import System
from k2ray.errors import TryAgain
from k2ray.settings import load_settings


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ActorDiedError(), "ActorDiedError: The actor died"),
        (RuntimeError("no"), "RuntimeError: no"),
        (TimeoutError("HTTP proxies not available after 60s."), "TimeoutError: HTTP proxies not available"),
    ],
)
def test_a_serve_that_cannot_be_started_is_said_to_be_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RayError | RuntimeError | TimeoutError, said: str
) -> None:
    """On a starved machine `up` said `up failed (ActorDiedError)`, and neither of whom nor what to do."""

    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(ray.serve, "start", fail)
    settings = load_settings(arguments={"data_dir": str(tmp_path)}, environ={})
    with pytest.raises(TryAgain, match=f"the HTTP interface did not start: {said}"):
        start_serving(System.of(settings), settings)
