"""`k2ray env`: what `ray status`, `ray list actors` or `serve status` need in their environment."""

from __future__ import annotations

import shlex
from pathlib import Path

from actors.cluster import RayCluster
from k2ray.cli.console import out
from k2ray.errors import RayUnavailable
from k2ray.layout import DataDir
from k2ray.settings import load_settings


def env(config: Path | None) -> None:
    """Print one `export` line a variable.

    Raises:
        RayUnavailable: Nothing runs, so there is nothing to reach.
    """
    settings = load_settings(config)
    cluster = RayCluster(settings, DataDir(settings.data_dir))
    known = cluster.running()
    if known is None:
        raise RayUnavailable("nothing runs here; start it with `k2ray up`")
    variables = {"RAY_ADDRESS": known.address, **cluster.environment()}
    if known.dashboard is not None:
        # `ray list`, `ray logs`, `ray job` ask the first, `serve` the second.
        variables |= {"RAY_API_SERVER_ADDRESS": known.dashboard, "RAY_DASHBOARD_ADDRESS": known.dashboard}
    for name, value in variables.items():
        out.print(f"export {name}={shlex.quote(value)}", markup=False)
