"""Many processes' metrics as one Prometheus text: every sample gets an `actor` label. Pure.

Each actor counts in its own process and nobody scrapes it; the supervisor collects the texts and the API shows them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "actor"


def merge_metrics(texts: Mapping[str, str]) -> str:
    """Return one text.

    Args:
        texts: Actor -> its own metrics in Prometheus' text format.
    """
    families: dict[str, Metric] = {}
    for actor, text in texts.items():
        for family in text_string_to_metric_families(text):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                merged.add_sample(sample.name, {**sample.labels, LABEL: actor}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry).decode()


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families
