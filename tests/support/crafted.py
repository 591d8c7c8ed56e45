"""Series of k2ray's metrics as a test wants them, made with the metrics that metrics.py declares: no name can be wrong.

A `Series` says what a metric of one actor is at each tick (a scrape). What an instance's actors say is merged as the
supervisor merges it, so labels are those of a real system. An HTTP server shows many instances at once, for a real
Prometheus; the same series as lists of values are promtool's `input_series`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from actors.exposition import generate_text, merge_families
from k2ray import metrics

AtTick = Callable[[int], float | None]


def steady(value: float) -> AtTick:
    """Always the same."""
    return lambda _tick: value


def growing(step: float, start: float = 0.0) -> AtTick:
    """A counter that grows at every tick."""
    return lambda tick: start + step * tick


def appearing(value: float, at: int = 4) -> AtTick:
    """A series that is not there at first: the very first event of its kind."""
    return lambda tick: value if tick >= at else None


@dataclass(frozen=True)
class Series:
    """One metric of one actor.

    Attributes:
        metric: Its name in metrics.py.
        labels: All of its own labels.
        at: Its value at each tick; of a histogram how often it has observed `observed`; None: not there.
        actor: Who says it.
        observed: What a histogram observes.
    """

    metric: str
    labels: Mapping[str, str]
    at: AtTick
    actor: str = "supervisor"
    observed: float = 0.0


def families(series: Sequence[Series], tick: int) -> list[Metric]:
    """Return what `/metrics` says at a tick."""
    registries: dict[str, CollectorRegistry] = {}
    made: dict[tuple[str, str], Any] = {}
    for one in series:
        value = one.at(tick)
        if value is None:
            continue
        registry = registries.setdefault(one.actor, CollectorRegistry())
        key = (one.actor, one.metric)
        if key not in made:
            made[key] = _clone(getattr(metrics, one.metric), registry)
        child = made[key].labels(**one.labels) if one.labels else made[key]
        if isinstance(child, Histogram):
            for _ in range(int(value)):
                child.observe(one.observed)
        elif isinstance(child, Gauge):
            child.set(value)
        else:
            child.inc(value)
    return merge_families({actor: generate_latest(registry).decode() for actor, registry in registries.items()})


def _clone(metric: MetricWrapperBase, registry: CollectorRegistry) -> MetricWrapperBase:
    keywords: dict[str, Any] = {"labelnames": metric._labelnames, "registry": registry}
    if isinstance(metric, Histogram):
        keywords["buckets"] = metric._kwargs["buckets"]
    return type(metric)(metric._name, metric._documentation, **keywords)


def input_series(series: Sequence[Series], ticks: int, instance: str) -> list[dict[str, str]]:
    """Return promtool's `input_series`: each sample's values at all ticks."""
    found: dict[str, list[str]] = {}
    for tick in range(ticks):
        for family in families(series, tick):
            for sample in family.samples:
                labels = {**sample.labels, "job": "k2ray", "instance": instance}
                name = sample.name + "{" + ",".join(f'{key}="{labels[key]}"' for key in sorted(labels)) + "}"
                values = found.setdefault(name, [])
                values += ["_"] * (tick - len(values)) + [f"{sample.value:g}"]
    return [{"series": name, "values": " ".join(values)} for name, values in found.items()]


@dataclass
class CraftedSystems:
    """What the server shows.

    Attributes:
        instances: Name -> its series.
        interval_s: A tick's length.
        url: Where it is shown.
    """

    instances: Mapping[str, Sequence[Series]]
    interval_s: float
    url: str = ""
    began_s: float = field(default_factory=time.monotonic)

    def text(self) -> str:
        """Return all instances' samples, each with the label `instance`."""
        tick = int((time.monotonic() - self.began_s) / self.interval_s)
        joined: dict[str, Metric] = {}
        for instance, series in self.instances.items():
            for family in families(series, tick):
                target = joined.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    target.add_sample(sample.name, {**sample.labels, "instance": instance}, sample.value)
        return generate_text(joined.values())

    def scrape_config(self) -> dict[str, Any]:
        """Return Prometheus' part; the samples' own `instance` is kept."""
        target = self.url.removeprefix("http://")
        return {"job_name": "k2ray", "honor_labels": True, "static_configs": [{"targets": [target]}]}


@contextlib.contextmanager
def crafted_systems(instances: Mapping[str, Sequence[Series]], interval_s: float) -> Iterator[CraftedSystems]:
    """Serve crafted metrics on a free port of 127.0.0.1."""
    systems = CraftedSystems(instances, interval_s)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = systems.text().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    systems.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield systems
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
