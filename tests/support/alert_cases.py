"""What makes each alert fire, one small fault a system, and a healthy system on which none does."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from k2ray import metrics
from tests.support.crafted import AtTick, Series, appearing, growing, steady

FEED, WRITER, BACKFILL, API = "feed:binance:0", "writer:trades", "backfill:binance", "api:0"
ONE_FEED = {"exchange": "binance", "feed": "0"}
TRADES = {"table": "trades"}
TOPIC = {"topic": "market.crypto.trades.binance"}


@dataclass(frozen=True)
class Case:
    """A fault, as the metrics show it.

    Attributes:
        alert: What fires, and nothing else.
        series: What the system says.
        variant: Tells cases of one alert apart.
    """

    alert: str
    series: tuple[Series, ...]
    variant: str = ""

    @property
    def instance(self) -> str:
        return f"{self.alert}{self.variant}"


def _feed(metric: str, at: AtTick, **labels: str) -> Series:
    return Series(metric, {**ONE_FEED, **labels}, at, FEED)


def _actor(metric: str, at: AtTick, **labels: str) -> Series:
    return Series(metric, {"actor": WRITER, **labels}, at)


CASES = (
    Case("K2rayFeedDown", (_feed("FEED_READY", steady(0)),)),
    Case(
        "K2rayFeedStale",
        (
            _feed("FEED_DATA_AGE", growing(15, 100)),
            _feed("FEED_READY", steady(1)),
            _feed("FEED_FRAMES", growing(20_000)),
        ),
    ),
    Case(
        "K2rayRotationFailing",
        (
            _feed("FEED_CONNECTS", growing(1), outcome="failed"),
            _feed("FEED_CONNECTION", steady(1), kind="open"),
        ),
    ),
    Case("K2rayRotationFailing", (_feed("FEED_CONNECTION_AGE", growing(15, 84_700)),), "AgedConnection"),
    Case("K2rayReconnectStorm", (_feed("FEED_RECONNECTS", growing(2)),)),
    Case(
        "K2rayReconnectStorm",
        (_feed("FEED_CONNECTS", growing(3), outcome="failed"), _feed("FEED_CONNECTION", steady(0), kind="open")),
        "Refused",
    ),
    Case("K2rayGapOpenTooLong", (Series("GAP_OLDEST_SECONDS", {"exchange": "binance"}, growing(15, 1_900), BACKFILL),)),
    Case("K2rayGapLost", (Series("GAP_EVENTS", {"exchange": "binance", "kind": "lost"}, appearing(1), BACKFILL),)),
    Case("K2rayBackfillBanned", (Series("BACKFILL_BANNED_SECONDS", {"exchange": "binance"}, steady(60), BACKFILL),)),
    Case(
        "K2rayBackfillBanned",
        (Series("EXCHANGE_BANNED", {"exchange": "binance", "resource": "weight"}, steady(60)),),
        "Everybody",
    ),
    Case(
        "K2rayBackfillOutOfWeight",
        (
            Series("BACKFILL_WEIGHT_LEFT", {"exchange": "binance"}, steady(0), BACKFILL),
            Series("GAP_MISSING_IDS", {"exchange": "binance"}, steady(900_000), BACKFILL),
        ),
    ),
    Case("K2rayBrokerAway", (Series("PRODUCE_FAILURES", TOPIC, growing(1), FEED),)),
    Case("K2rayBrokerAway", (Series("PRODUCE_FAILURES", TOPIC, appearing(1), FEED),), "First"),
    Case("K2rayBrokerAway", (Series("WRITER_RETRIES", {**TRADES, "reason": "broker"}, growing(1), WRITER),), "Reader"),
    Case("K2raySpoolGrowing", (Series("SPOOL_BYTES", {"client": FEED}, growing(1e6), FEED),)),
    Case(
        "K2raySpoolNearFull",
        (
            Series("SPOOL_BYTES", {"client": FEED}, steady(3.6e9), FEED),
            Series("SPOOL_LIMIT_BYTES", {"client": FEED}, steady(4e9), FEED),
        ),
    ),
    Case("K2rayRowsShed", (Series("SHED_ROWS", TOPIC, appearing(200), FEED),)),
    Case(
        "K2rayDeadLetters",
        (Series("DEAD_LETTERS", {"exchange": "binance", "source": "feed", "cause": "malformed"}, appearing(1), FEED),),
    ),
    Case("K2rayWriterLag", (Series("WRITER_LAG_SECONDS", TRADES, growing(1, 61), WRITER),)),
    Case("K2rayFreshness", (Series("FRESHNESS_SECONDS", {**TRADES, "percentile": "99"}, steady(45), WRITER),)),
    Case(
        "K2rayNothingStored",
        (
            _feed("FEED_ROWS", growing(9_000), channel="trades", symbol_class="crypto"),
            Series("COMMITTED_ROWS", TRADES, steady(1e6), WRITER),
        ),
    ),
    Case("K2rayCommitFailing", (Series("COMMIT_WAIT_SECONDS", TRADES, growing(15, 50), WRITER),)),
    Case("K2rayCommitSlow", (Series("COMMIT_SECONDS", TRADES, growing(1), WRITER, observed=8.0),)),
    Case("K2rayCatalogTrouble", (Series("WRITER_RETRIES", {**TRADES, "reason": "catalog"}, growing(3), WRITER),)),
    Case("K2rayTwoWriters", (Series("WORLDS_MOVED", TRADES, growing(1), WRITER),)),
    Case("K2rayLogLost", (Series("OFFSET_JUMPS", {**TRADES, "kind": "hole"}, appearing(1), WRITER),)),
    Case("K2rayNewSequenceSpace", (Series("LEDGER_EVENTS", {**TRADES, "kind": "space_opened"}, appearing(1), WRITER),)),
    Case("K2rayUpkeepBehind", (Series("TABLE_SNAPSHOTS", TRADES, growing(3, 1_001), "upkeep:trades"),)),
    Case("K2rayUpkeepBehind", (Series("TABLE_SMALL_FILES", TRADES, steady(30_000), "upkeep:trades"),), "SmallFiles"),
    Case(
        "K2rayCompactionRefused",
        (Series("COMPACTIONS", {**TRADES, "outcome": "refused"}, appearing(1), "upkeep:trades"),),
    ),
    Case("K2rayDiskLow", (Series("DISK_FREE_BYTES", {"place": "data_dir"}, steady(1e9), "upkeep:trades"),)),
    Case("K2raySchemaRegistryAway", (Series("WIRE_FALLBACK_ROWS", TOPIC, growing(500), FEED),)),
    Case("K2rayActorDown", (_actor("ACTOR_UP", steady(0)), _actor("ACTOR_FAILED", steady(0)))),
    Case("K2rayActorFailed", (_actor("ACTOR_FAILED", steady(1)),)),
    Case("K2rayActorRestarting", (_actor("ACTOR_RESTARTS", growing(1), reason="crash"),)),
    Case("K2rayReplacementFailing", (_actor("ACTOR_REPLACEMENTS", growing(1), reason="leak", outcome="failed"),)),
    Case(
        "K2rayActorMemory",
        (
            Series("ACTOR_RSS_BYTES", {}, steady(1.8e9), WRITER),
            _actor("ACTOR_MEMORY_LIMIT_BYTES", steady(1.5e9), limit="soft"),
            _actor("ACTOR_MEMORY_LIMIT_BYTES", steady(2.5e9), limit="hard"),
        ),
    ),
    Case("K2rayActorLeaking", (Series("ACTOR_LEAK_SCORE", {}, steady(0.9), WRITER),)),
    Case("K2raySupervisorHung", (Series("SUPERVISOR_UP", {"role": "api"}, steady(0), API),)),
    Case("K2rayMetricsOld", (_actor("METRICS_AGE_SECONDS", growing(15)),)),
    Case(
        "K2rayApiErrors",
        (
            Series("HTTP_REQUESTS", {"route": "/v1/trades", "status": "200"}, growing(90), API),
            Series("HTTP_REQUESTS", {"route": "/v1/trades", "status": "503"}, growing(10), API),
            Series("HTTP_REQUESTS", {"route": "/ready", "status": "200"}, growing(10_000), API),
        ),
    ),
    Case("K2rayApiSlow", (Series("HTTP_SECONDS", {"route": "/v1/bars"}, growing(2), API, observed=20.0),)),
)

SCRAPE_DOWN = "K2rayScrapeDown"
"""The only alert on what Prometheus itself says: a target that does not answer."""

_TYPICAL = {
    "actor": WRITER,
    "cache": "readers",
    "cause": "malformed",
    "channel": "trades",
    "client": FEED,
    "exchange": "binance",
    "feed": "0",
    "kind": "open",
    "limit": "soft",
    "outcome": "done",
    "place": "data_dir",
    "percentile": "99",
    "reason": "schedule",
    "resource": "weight",
    "role": "feed",
    "route": "/v1/trades",
    "source": "feed",
    "status": "200",
    "symbol_class": "crypto",
    "table": "trades",
    "topic": "market.crypto.trades.binance",
}

_NEVER = {
    "PRODUCE_FAILURES",
    "SHED_ROWS",
    "DEAD_LETTERS",
    "GAP_EVENTS",
    "FEED_RECONNECTS",
    "WIRE_FALLBACK_ROWS",
    "WORLDS_MOVED",
    "OFFSET_JUMPS",
    "LEDGER_EVENTS",
    "WRITER_RETRIES",
    "UNSTORABLE_RECORDS",
}
"""Counters that stand still where all is well."""

_WELL: dict[str, AtTick] = {
    "ACTOR_FAILED": steady(0),
    "ACTOR_LEAK_SCORE": steady(0.1),
    "ACTOR_MEMORY_LIMIT_BYTES": steady(5e8),
    "ACTOR_RESTARTS": steady(1),
    "ACTOR_RSS_BYTES": steady(2e8),
    "BACKFILL_BANNED_SECONDS": steady(0),
    "BACKFILL_WEIGHT_LEFT": steady(3_000),
    "DISK_FREE_BYTES": steady(9e10),
    "EXCHANGE_BANNED": steady(0),
    "GAP_MISSING_IDS": steady(0),
    "GAP_OLDEST_SECONDS": steady(0),
    "SPOOL_BYTES": steady(0),
    "SPOOL_LIMIT_BYTES": steady(4e9),
}


def thin() -> tuple[Series, ...]:
    """Return a feed of symbols that hardly anybody trades: silent for long, and nothing is wrong."""
    return (
        _feed("FEED_DATA_AGE", growing(15, 100)),
        _feed("FEED_READY", steady(1)),
        _feed("FEED_FRAMES", growing(1)),
        _feed("FEED_STALE_PROBES", growing(1)),
        _feed("FEED_PONG_AGE", steady(5)),
    )


def healthy() -> tuple[Series, ...]:
    """Return every declared metric at a value that it has where all is well."""
    found = []
    for name, metric in vars(metrics).items():
        if isinstance(metric, MetricWrapperBase):
            labels = {label: _TYPICAL[label] for label in metric._labelnames}
            found.append(Series(name, labels, _well(name, metric), WRITER, observed=0.01))
    return tuple(found)


def _well(name: str, metric: MetricWrapperBase) -> AtTick:
    if name in _WELL:
        return _WELL[name]
    if name in _NEVER:
        return steady(0)
    if isinstance(metric, Counter | Histogram):
        return growing(1)
    assert isinstance(metric, Gauge)
    return steady(1)
