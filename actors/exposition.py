"""Many processes' metrics as one Prometheus text: every sample says whose it is in the label `actor`. Pure.

Each actor counts in its own process and nobody scrapes it; the supervisor collects the texts and the API shows them.
Labels that the actor set itself stay, so that the supervisor can speak of others.

Next in the flow: `actors/collected.py` decides whose text is shown under which name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "actor"
LEAVING = "leaving"
"""Label of a generation that is on its way out beside its successor; without it two processes would share a series."""

_LEFT_OUT = ("python_",)
"""Nobody asks for the garbage collector of each of a dozen processes."""


def merge_metrics(texts: Mapping[str, str]) -> str:
    """Return one text.

    Args:
        texts: Actor -> its own metrics in Prometheus' text format. `feed:binance:0#7` is a generation that leaves.
    """
    return generate_text(merge_families(texts))


def merge_families(texts: Mapping[str, str]) -> list[Metric]:
    """Return the families of all texts; what an actor says that cannot be read is left out, and only that."""
    families: dict[str, Metric] = {}
    for key, text in texts.items():
        actor, leaving, _ = key.partition("#")
        own = {LABEL: actor, LEAVING: "yes"} if leaving else {LABEL: actor}
        for family in _readable(text):
            if family.name.startswith(_LEFT_OUT) or family.name.endswith("_created"):
                continue
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            if merged.type != family.type:
                continue  # another release's idea of it
            for sample in family.samples:
                merged.add_sample(sample.name, {**own, **sample.labels}, sample.value)
    return list(families.values())


def generate_text(families: Iterable[Metric]) -> str:
    """Return families in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return generate_latest(registry).decode()


def _readable(text: str) -> Iterator[Metric]:
    try:
        yield from text_string_to_metric_families(text)
    except ValueError:
        return


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._families
