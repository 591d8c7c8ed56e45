"""The system's metrics as Ray's own, so that Ray's dashboard and its Prometheus port show them as `ray_k2ray_...`.

Counters are set as gauges of the same name: they are other processes' totals, and Ray's counters only count what their
own process adds. Histograms stay with `/metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

from actors.exposition import LEAVING, merge_families

_SHOWN = ("counter", "gauge")


class RayMirror:
    """Ray's metrics by name; each is made when it is first seen."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def show(self, texts: Mapping[str, str]) -> None:
        """Set every counter and gauge of k2ray's; takes what `Collected.texts` returns."""
        for family in merge_families(texts):
            if family.type not in _SHOWN or not family.name.startswith("k2ray_"):
                continue
            for sample in family.samples:
                if LEAVING in sample.labels:
                    continue
                gauge = self._gauges.get(sample.name)
                if gauge is None:
                    gauge = Gauge(sample.name, family.documentation, tag_keys=tuple(sample.labels))
                    self._gauges[sample.name] = gauge
                gauge.set(sample.value, tags=dict(sample.labels))
