"""What a verdict needs besides samples: what should happen, from the settings, and what the tables hold."""

from __future__ import annotations

from collections.abc import Sequence

from k2ray.lake.catalog import load_table, open_catalog
from k2ray.layout import DataDir
from k2ray.settings import Settings
from k2ray.soak.evidence import Evidence, examine
from k2ray.soak.samples import INTERVAL_S, Sample
from k2ray.soak.verdict import Plan

STEPS_BY_ONE = frozenset({"trades"})
"""Tables whose ids prove that nothing is missing."""


def plan_of(settings: Settings, samples: Sequence[Sample], sample_interval_s: float = INTERVAL_S) -> Plan:
    """Return what should happen to a system with these settings.

    Args:
        settings: Of the system.
        samples: Say which feeds carry data; one without symbols has no connection.
        sample_interval_s: Between samples.
    """
    feed, memory = settings.feed, settings.memory
    carrying = {
        actor.name
        for sample in samples
        for actor in sample.actors
        if actor.role == "feed" and actor.data_age_s is not None
    }
    roles = ("feed", "writer", "upkeep", "backfill", "serializer", "api")
    limits = {role: getattr(memory, role, None) for role in roles}
    return Plan(
        feeds=len(carrying),
        rotate_every_s=feed.rotate_every_s / feed.time_compression,
        jitter=feed.rotate_jitter,
        ping_interval_s=feed.ping_interval_s / feed.time_compression,
        pong_timeout_s=feed.pong_timeout_s,
        sample_interval_s=sample_interval_s,
        warmup_s=memory.warmup_s,
        hard_bytes={role: limit.hard_bytes for role, limit in limits.items() if limit is not None}
        | {"supervisor": memory.supervisor.hard_bytes},
    )


def examine_tables(settings: Settings, layout: DataDir, since_s: float, until_s: float) -> list[Evidence]:
    """Return what the recorded tables hold of a period.

    Raises:
        TryAgain: The catalog is away.
    """
    catalog = open_catalog(settings, layout)
    found = []
    for name in settings.exchanges.tables():
        table = load_table(catalog, settings, name)
        if table is not None:
            found.append(examine(table, name, since_s, until_s, steps_by_one=name in STEPS_BY_ONE))
    return found
