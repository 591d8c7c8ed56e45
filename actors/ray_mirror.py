"""The system's metrics as Ray's own, so that Ray's dashboard and its Prometheus port show them as `ray_k2ray_...`.

Counters are set as gauges of the same name: they are other processes' totals, and Ray's counters only count what their
own process adds. Histograms stay with `/metrics`.

Ray has no way to remove a series from a living process. One that is not there any more (its actor was taken away) is
set to 0 after five minutes, so that sums stay right: a NaN would make every sum NaN. It goes when the supervisor ends.
Alerts belong on `/metrics`, where it is gone at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

from actors.exposition import LEAVING, merge_families

_SHOWN = ("counter", "gauge")

GONE_AFTER = 30
"""Shows (one in 10 s) without a series until it is taken for gone: a counter of an actor that was only silent would
otherwise fall to 0 and come back, which a rate shows as a burst. The supervisor has ended a silent one long before."""

Series = tuple[str, tuple[tuple[str, str], ...]]


class RayMirror:
    """Ray's metrics by name; each is made when it is first seen."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}
        self._absent: dict[Series, int] = {}

    def show(self, texts: Mapping[str, str]) -> None:
        """Set every counter and gauge of k2ray's; takes what `Collected.texts` returns."""
        shown: set[Series] = set()
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
                shown.add((sample.name, tuple(sample.labels.items())))
        self._forget_all_but(shown)

    def _forget_all_but(self, shown: set[Series]) -> None:
        self._absent |= dict.fromkeys(shown, 0)
        for series in self._absent.keys() - shown:
            self._absent[series] += 1
            if self._absent[series] >= GONE_AFTER:
                name, labels = series
                self._gauges[name].set(0.0, tags=dict(labels))
                del self._absent[series]
