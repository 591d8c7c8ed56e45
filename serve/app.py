"""13. The Ray Serve deployment around the HTTP interface.

`serve run serve.app:app config=FILE` and `k2ray up` (which passes the settings themselves) build the same deployment.
Replicas get the settings as a constructor argument: their environment is the raylet's, not the caller's.

Next in the flow: `api.py` is the FastAPI app that each replica runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from actors.scrape import report_replica, system_metrics
from actors.supervisor import system_status
from k2ray.errors import SettingsError
from k2ray.layout import DataDir
from k2ray.logs import configure_logs
from k2ray.settings import Settings, load_settings
from serve.api import QUERIES_WAITING, QUERY_THREADS, build_api
from serve.metrics import SystemMetrics

STATUS_TIMEOUT_S = 2.0
METRICS_TIMEOUT_S = 4.0


class MarketApi:
    """What Serve runs: builds the app in the replica and says that it is alive.

    Args:
        settings_json: `Settings.to_json()`.
    """

    def __init__(self, settings_json: str) -> None:
        self._settings = Settings.from_json(settings_json)

    def __serve_build_asgi_app__(self) -> FastAPI:
        layout = DataDir(self._settings.data_dir)
        namespace, replica = layout.namespace, str(serve.get_replica_context().replica_id.unique_id)
        configure_logs(layout.logs, f"api-{replica}")
        return build_api(
            self._settings,
            lambda: system_status(namespace, STATUS_TIMEOUT_S),
            SystemMetrics(
                lambda text: system_metrics(namespace, replica, text, METRICS_TIMEOUT_S),
                lambda text: report_replica(namespace, replica, text, METRICS_TIMEOUT_S),
            ),
        )

    async def check_health(self) -> None:
        """Answer Serve's health question from the event loop: work in threads never delays it."""


def app(args: dict[str, Any]) -> Application:
    """Build the Serve application.

    Args:
        args: `config`: path of a k2ray.yaml; or `settings`: JSON of `Settings.to_json()`; nothing: as `load_settings`.

    Raises:
        SettingsError: An argument or a setting is unknown or wrong.
    """
    settings = _settings(args)
    deployment: Callable[..., Any] = serve.deployment(
        name="api",
        num_replicas=settings.api.replicas,
        max_ongoing_requests=QUERY_THREADS + QUERIES_WAITING,
        graceful_shutdown_timeout_s=20,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=2,
        health_check_timeout_s=10,
        ray_actor_options={"num_cpus": 0},
    )
    bound: Application = deployment(serve.ingress()(MarketApi)).bind(settings.to_json())
    return bound


def _settings(args: dict[str, Any]) -> Settings:
    unknown = set(args) - {"config", "settings"}
    if unknown or len(args) > 1:
        raise SettingsError(f"serve.app:app takes config=FILE or settings=JSON, not {', '.join(sorted(args))}")
    if "settings" in args:
        return Settings.from_json(args["settings"])
    return load_settings(Path(args["config"]) if "config" in args else None)
