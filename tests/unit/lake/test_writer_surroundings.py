"""The writer when things around it fail: logs that lose records, other topics, an absent catalog; what it reports."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from k2ray.errors import BrokerUnavailable, CatalogUnavailable, OperatorNeeded
from k2ray.lake.durable import local_path
from k2ray.lake.progress import HOLES_KEY, REWINDS_KEY
from k2ray.settings import load_settings
from k2ray.wire.codec import Seal, encode_seal
from tests.support.lake import (
    NOON_US,
    QUOTES_TOPIC,
    TRADES_TOPIC,
    MemoryLog,
    lake_settings,
    open_table,
    trades,
)
from tests.support.writer_desk import FIRST, SECOND, Desk, ledger_path, until


def test_a_log_that_lost_its_start_is_a_recorded_hole(desk: Desk) -> None:
    desk.log.publish(FIRST, trades(range(10)))
    assert desk.writer().drain()
    for start in (10, 20, 30):
        desk.log.publish(FIRST, trades(range(start, start + 10)))
    desk.log.low[FIRST] = 3
    writer = desk.writer()
    writer.position()
    assert writer.status().holes == 2
    table = open_table(desk.folder)
    summary = table.current_snapshot().summary.additional_properties  # type: ignore[union-attr]
    assert f'[["{TRADES_TOPIC}",0,1,3,' in summary[HOLES_KEY]
    assert writer.drain()
    assert desk.ids() == [*range(10), *range(30, 40)]
    assert writer.status().open_gaps == 1


def test_a_log_that_lost_its_end_is_an_explicit_rewind(desk: Desk) -> None:
    """The broker's page cache went with a power cut: confirmed records are gone, and come again from the feeds."""
    for start in (0, 10, 20):
        desk.log.publish(FIRST, trades(range(start, start + 10)))
    assert desk.writer().drain()
    del desk.log.partitions[FIRST][1:]
    writer = desk.writer()
    writer.position()
    assert writer.status().rewinds == 1
    summary = open_table(desk.folder).current_snapshot().summary.additional_properties  # type: ignore[union-attr]
    assert f'[["{TRADES_TOPIC}",0,3,1,' in summary[REWINDS_KEY]
    desk.log.publish(FIRST, trades(range(15, 40)))
    assert writer.drain()
    assert writer.status().duplicates == 15
    assert desk.ids() == list(range(40))


def test_a_log_that_is_trimmed_while_it_is_read_loses_nothing_that_was_read(desk: Desk) -> None:
    """What was read and is not committed may be gone from the log: it is committed before the hole is recorded."""
    desk.log.publish(FIRST, trades(range(10)))
    writer = desk.writer(max_records=1)
    until(writer, "rows_pending", 10)
    for start in (10, 20, 30):
        desk.log.publish(FIRST, trades(range(start, start + 10)))
    desk.log.low[FIRST] = 3
    until(writer, "holes", 2)
    assert writer.drain()
    assert desk.ids() == [*range(10), *range(30, 40)]


def test_another_kafka_or_another_topic_of_the_same_name_stops_the_writer(desk: Desk) -> None:
    desk.log.publish(FIRST, trades(range(10)))
    assert desk.writer().drain()
    desk.log.topic_ids[TRADES_TOPIC] = "another"
    with pytest.raises(OperatorNeeded, match="is another one now"):
        desk.writer().step()
    desk.log.topic_ids[TRADES_TOPIC] = "id-0"
    desk.log.cluster_id = "cluster-2"
    with pytest.raises(OperatorNeeded, match="cluster-1, this is cluster-2"):
        desk.writer().step()


def test_a_topic_that_does_not_exist_yet_is_waited_for(desk: Desk) -> None:
    desk.log.partitions = {key: records for key, records in desk.log.partitions.items() if key[0] == QUOTES_TOPIC}
    with pytest.raises(BrokerUnavailable, match="does not exist yet"):
        desk.writer().step()


def test_a_ledger_of_other_offsets_is_refused(desk: Desk) -> None:
    desk.log.publish(FIRST, trades(range(10)))
    assert desk.writer().drain()
    first = ledger_path(desk)
    desk.log.publish(FIRST, trades(range(10, 20)))
    assert desk.writer().drain()
    second = ledger_path(desk)
    content = first.read_bytes()
    second.write_bytes(content)
    with pytest.raises(OperatorNeeded, match="the key says"):
        desk.writer().step()
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(OperatorNeeded):
        desk.writer().step()
    second.unlink()
    with pytest.raises(OperatorNeeded, match="is gone"):
        desk.writer().step()


def test_a_seal_closes_a_gap_for_good(desk: Desk) -> None:
    desk.log.publish(FIRST, trades([1, 2, 3, 7, 8]))
    writer = desk.writer()
    assert writer.drain()
    assert writer.status().open_gaps == 1
    desk.log.append(FIRST, *encode_seal(Seal("binance", "BTCUSDT", "", 3, 6, "the exchange has forgotten them")))
    assert writer.drain()
    assert writer.status().open_gaps == 0


def test_a_catalog_that_is_away_loses_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.log.publish(FIRST, trades(range(10)))
    writer = desk.writer()
    until(writer, "rows_pending", 10)
    metadata = Path(str(local_path(open_table(desk.folder).location()))) / "metadata"
    catalog = writer._catalog
    assert catalog is not None
    labels = {"table": "trades", "reason": "catalog"}
    retries = REGISTRY.get_sample_value("k2ray_writer_retries_total", labels) or 0.0

    def away(*_: Any, **__: Any) -> Any:
        raise OSError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "commit_table", away)
        patch.setattr(catalog, "load_table", away)
        for _ in range(3):
            with pytest.raises(CatalogUnavailable):
                writer.drain()
        assert metadata.exists()
    assert REGISTRY.get_sample_value("k2ray_writer_retries_total", labels) == retries + 3
    assert writer.drain()
    assert desk.ids() == list(range(10))


def test_the_broker_is_not_asked_for_lag_with_every_batch(desk: Desk) -> None:
    """Trap 22: asking cost 1.7 s a batch, 488 instead of 3,660 messages a second."""
    writer = desk.writer(max_records=1)
    writer.position()
    asked = desk.log.questions
    for start in range(0, 500, 10):
        desk.log.publish(FIRST, trades(range(start, start + 10)))
    until(writer, "records", 50)
    assert desk.log.questions == asked
    assert writer.status().lag_trades == 0


def test_lag_counts_trades_not_records(desk: Desk) -> None:
    writer = desk.writer(max_records=1)
    for start in range(0, 5_000, 100):
        desk.log.publish(FIRST, trades(range(start, start + 100)))
    until(writer, "records", 40)
    assert 900 <= writer.status().lag_trades <= 1_100


def test_freshness_is_measured_at_the_commit(desk: Desk) -> None:
    writer = desk.writer(settings=lake_settings(desk.folder, interval_s=5), clock=desk.clock)
    desk.log.publish(FIRST, trades(range(100), start_us=NOON_US, step_us=0))
    until(writer, "rows_pending", 100)
    desk.clock.advance(6)
    until(writer, "commits", 1)
    assert writer.status().freshness_p50_s == pytest.approx(6, rel=0.2)
    assert Counter(desk.ids()) == Counter(range(100))


def test_a_second_exchange_topic_that_appears_later_starts_at_its_beginning(desk: Desk, tmp_path: Path) -> None:
    desk.log.publish(FIRST, trades(range(10)))
    assert desk.writer().drain()
    more = MemoryLog({"market.crypto.agg_trades.binance": 2})
    desk.log.partitions.update(more.partitions)
    desk.log.low.update(more.low)
    desk.log.topic_ids["market.crypto.agg_trades.binance"] = "id-agg"
    desk.log.publish(("market.crypto.agg_trades.binance", 0), trades(range(5), space="agg"))
    desk.log.publish(FIRST, trades(range(10, 12)))
    settings = load_settings(
        arguments={
            "data_dir": str(tmp_path),
            "exchanges": {"binance": {"channels": ["trades", "agg_trades", "quotes"]}},
        },
        environ={},
    )
    assert desk.writer(settings=settings).drain()
    assert desk.ids() == sorted([*range(12), *range(5)])


def test_consumer_lag_metrics_were_never_set(desk: Desk) -> None:
    """Trap 27: consumer-lag metrics were never set."""

    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, {"table": "trades", **labels}) or 0.0

    names = ("committed_rows_total", "duplicate_rows_total", "unstorable_records_total", "worlds_moved_total")
    before = {name: value(f"k2ray_{name}") for name in names}
    jumps = {kind: value("k2ray_offset_jumps_total", kind=kind) for kind in ("hole", "rewind")}
    restarts = value("k2ray_ledger_events_total", kind="space_opened")
    seconds = value("k2ray_commit_seconds_count")
    desk.log.came_us = time.time_ns() // 1_000
    desk.log.publish(FIRST, trades([1, 2, 3, 7, 8]))
    desk.log.publish(FIRST, trades([7, 8]))
    desk.log.append(FIRST, b"junk", [])
    zombie = desk.writer()
    until(zombie, "rows_pending", 5)
    zombie.step(0)
    assert value("k2ray_commit_wait_seconds") > 0
    assert desk.writer().drain()
    assert value("k2ray_open_gaps") == 1
    for percentile in ("50", "99"):
        assert value("k2ray_freshness_seconds", percentile=percentile) > 0
    assert zombie.drain()
    for name in names:
        assert value(f"k2ray_{name}") > before[name], name
    assert value("k2ray_commit_seconds_count") > seconds
    slow = desk.writer(max_records=1)
    for start in range(0, 1_000, 100):
        desk.log.publish(FIRST, trades(range(start + 100, start + 200)))
    until(slow, "records", 2)
    assert value("k2ray_writer_lag_trades") > 0
    assert value("k2ray_writer_lag_seconds") > 0
    desk.log.publish(FIRST, trades(range(1, 50), start_us=NOON_US + 3_600_000_000))
    assert slow.drain()
    assert value("k2ray_ledger_events_total", kind="space_opened") > restarts
    desk.log.low[SECOND] = 0
    del desk.log.partitions[FIRST][5:]
    desk.writer().position()
    for start in range(3_000, 3_300, 100):
        desk.log.publish(FIRST, trades(range(start, start + 100)))
    desk.log.low[FIRST] = 7
    desk.writer().position()
    for kind, count in jumps.items():
        assert value("k2ray_offset_jumps_total", kind=kind) > count, kind
