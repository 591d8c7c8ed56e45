"""One small Ray cluster for all tests of a session: started as our own head, by pid, on free ports, without dashboard.

`prepare_environment` runs before anything imports Ray, since Ray reads half of its environment while it is imported.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actors.cluster import RayCluster
from k2ray.layout import DataDir
from k2ray.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
SESSION = Path(tempfile.gettempdir()) / f"k2ray-test-{os.getpid()}"


def _cluster() -> RayCluster:
    ray = {"dashboard": False, "num_cpus": 4, "object_store_bytes": 100_000_000}
    settings = load_settings(arguments={"data_dir": str(SESSION), "ray": ray}, environ={})
    return RayCluster(settings, DataDir(SESSION), watch_memory=False, haproxy=False)


def prepare_environment() -> None:
    """Make this process a possible driver of the session's cluster; starts nothing."""
    _cluster().prepare()


@dataclass
class SmallCluster:
    """A running cluster that this process is connected to.

    Attributes:
        address: HOST:PORT.
        cluster: What started it.
    """

    address: str
    cluster: RayCluster

    def settings(self, data_dir: Path, **sections: object) -> Settings:
        """Return settings of a system of its own in this cluster (its namespace follows from `data_dir`)."""
        arguments = {"data_dir": str(data_dir), "ray": {"address": self.address}, **sections}
        return load_settings(arguments=arguments, environ={})


@contextlib.contextmanager
def small_cluster() -> Iterator[SmallCluster]:
    """Start the session's cluster, connect this process to it, and end it by its pid."""
    (SESSION / "run").mkdir(parents=True, exist_ok=True)
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # workers find tests.support
    cluster = _cluster()
    try:
        cluster.start()
        yield SmallCluster(cluster.connect().address, cluster)
    finally:
        import ray

        ray.shutdown()
        cluster.stop()
        shutil.rmtree(SESSION, ignore_errors=True)
        if path is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = path
