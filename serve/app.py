"""13. The Ray Serve deployment around the HTTP interface.

`serve run serve.app:app config=FILE` and `k2ray up` (which passes the settings themselves) build the same deployment.
Replicas get the settings as a constructor argument: their environment is the raylet's, not the caller's.

Next in the flow: `api.py` is the FastAPI app that each replica runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from actors.handover import status_through_handover
from actors.leases import tell_leases
from actors.pressure import replica_ends
from actors.sampling import MemorySampler, as_health
from actors.scrape import report_replica, system_metrics
from k2ray.errors import K2rayError, SettingsError
from k2ray.layout import DataDir
from k2ray.logs import configure_logs, get_logger
from k2ray.settings import Settings, load_settings
from serve.api import QUERIES_WAITING, QUERY_THREADS, build_api
from serve.metrics import SystemMetrics

STATUS_TIMEOUT_S = 2.0
METRICS_TIMEOUT_S = 4.0

DRAIN_MARGIN_S = 10.0
"""A replica that is replaced answers what it was asked before it ends: the longest query, and the way back."""


_log = get_logger(__name__)


class TooMuchMemory(K2rayError):
    """This replica is over its hard limit. Serve stops asking it, lets it answer what it was asked, starts another."""


class MarketApi:
    """What Serve runs: builds the app in the replica and says that it is alive.

    Args:
        settings_json: `Settings.to_json()`.
        memory: This process's; None samples it.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        settings_json: str,
        memory: MemorySampler | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = Settings.from_json(settings_json)
        self._memory = memory or MemorySampler(self._settings.memory)
        self._clock = clock
        self._born_s = clock()

    def __serve_build_asgi_app__(self) -> FastAPI:
        layout = DataDir(self._settings.data_dir)
        namespace, unique = layout.namespace, str(serve.get_replica_context().replica_id.unique_id)
        replica = f"{unique}/{os.getpid()}"
        configure_logs(layout.logs, f"api-{unique}")
        self._memory.start()
        return build_api(
            self._settings,
            lambda: status_through_handover(layout, STATUS_TIMEOUT_S),
            SystemMetrics(
                lambda text: system_metrics(namespace, replica, text, METRICS_TIMEOUT_S),
                lambda text: report_replica(namespace, replica, text, METRICS_TIMEOUT_S),
            ),
            lambda leases: tell_leases(namespace, leases),
        )

    async def check_health(self) -> None:
        """Answer Serve's health question from the event loop: work in threads never delays it.

        Raises:
            TooMuchMemory: Over the hard limit. Serve acts on the third time in a row, so a short peak costs nothing.
        """
        age_s = self._clock() - self._born_s
        if why := replica_ends(as_health(self._memory.report()), self._settings.memory, age_s):
            _log.warning("wants to be replaced", reason=why)
            raise TooMuchMemory(why)


def app(args: dict[str, Any]) -> Application:
    """Build the Serve application.

    Args:
        args: `config`: path of a k2ray.yaml; or `settings`: JSON of `Settings.to_json()`; nothing: as `load_settings`.
            `code`: folder that the replicas import their modules from, named by its release's digest; nothing: what is
            installed. `replicas`: how many instead of the settings' number.

    Raises:
        SettingsError: An argument or a setting is unknown or wrong.
    """
    code, replicas = args.get("code"), args.get("replicas")
    settings = _settings({name: value for name, value in args.items() if name not in {"code", "replicas"}})
    environment = {} if code is None else {"runtime_env": {"env_vars": {"PYTHONPATH": f"{code}:${{PYTHONPATH}}"}}}
    deployment: Callable[..., Any] = serve.deployment(
        name="api",
        num_replicas=settings.api.replicas if replicas is None else int(replicas),
        max_ongoing_requests=QUERY_THREADS + QUERIES_WAITING,
        graceful_shutdown_timeout_s=settings.api.timeout_s + DRAIN_MARGIN_S,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=2,
        health_check_timeout_s=10,
        ray_actor_options={"num_cpus": 0, **environment},
    )
    market_api = deployment(serve.ingress()(MarketApi))
    if code is not None:
        # Serve makes a version up for every `run` and replaces all replicas for it; with one of ours, another number of
        # replicas alone leaves the others as they are. There is no public way to say it.
        market_api = market_api.options(version=Path(code).name, _internal=True)
    bound: Application = market_api.bind(settings.to_json())
    return bound


def _settings(args: dict[str, Any]) -> Settings:
    unknown = set(args) - {"config", "settings"}
    if unknown or len(args) > 1:
        given = ", ".join(sorted(args))
        raise SettingsError(
            f"serve.app:app takes config=FILE or settings=JSON, code=FOLDER and replicas=N, not {given}"
        )
    if "settings" in args:
        return Settings.from_json(args["settings"])
    return load_settings(Path(args["config"]) if "config" in args else None)
