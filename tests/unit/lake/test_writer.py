"""The writer, a log in memory and a real table in SQLite: what is stored is what the log says, whatever fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import pytest
from prometheus_client import REGISTRY

from k2ray.clock import ManualClock
from k2ray.errors import BrokerUnavailable, CatalogUnavailable, OperatorNeeded
from k2ray.lake.commit import no_faults
from k2ray.lake.durable import local_path
from k2ray.lake.intake import EARLIEST_US
from k2ray.lake.progress import HOLES_KEY, REWINDS_KEY, committed_progress
from k2ray.lake.writer import IDLE_COMMIT_FACTOR, TableWriter
from k2ray.layout import DataDir
from k2ray.settings import Settings, load_settings
from k2ray.wire.codec import Seal, decode, encode_rows, encode_seal
from tests.support.lake import (
    NOON_US,
    QUOTES_TOPIC,
    TRADES_TOPIC,
    Killed,
    MemoryLetters,
    MemoryLog,
    MemoryReader,
    kill_at,
    lake_settings,
    open_table,
    quotes,
    stored_ids,
    trades,
)

FIRST, SECOND = (TRADES_TOPIC, 0), (TRADES_TOPIC, 1)
COMMIT_POINTS = ("before_stage", "mid_parquet", "staged", "head_read", "inside_commit", "after_commit")


class Desk:
    """A log, a table's folder, and writers that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = MemoryLog({TRADES_TOPIC: 2, QUOTES_TOPIC: 2})
        self.letters = MemoryLetters()
        self.clock = ManualClock(now_us=NOON_US)
        self._writers: list[TableWriter] = []

    def writer(
        self, faults: Any = no_faults, settings: Settings | None = None, table: str = "trades", **more: Any
    ) -> TableWriter:
        writer = TableWriter(
            settings or lake_settings(self.folder),
            DataDir(self.folder),
            table,
            "",
            clock=more.pop("clock", None),
            reader=MemoryReader(self.log, **more),
            letters=lambda: self.letters,
            faults=faults,
        )
        self._writers.append(writer)
        return writer

    def ids(self, table: str = "trades") -> list[int]:
        return stored_ids(open_table(self.folder, table_name=table))

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


def ledger_path(desk: Desk) -> Path:
    progress = committed_progress(open_table(desk.folder).metadata)
    assert progress is not None
    assert progress.ledger is not None
    return Path(str(local_path(progress.ledger)))


def until(writer: TableWriter, field: str, value: Any, steps: int = 2_000) -> None:
    for _ in range(steps):
        if getattr(writer.status(), field) == value:
            return
        writer.step(0.005)
    raise AssertionError(f"{field} never became {value!r}: {writer.status()}")


def test_rows_offsets_and_ledger_are_committed_together(desk: Desk) -> None:
    desk.log.publish(FIRST, trades(range(10)))
    desk.log.publish(SECOND, trades(range(10, 20), "ETHUSDT"))
    writer = desk.writer()
    assert writer.drain()
    status = writer.status()
    assert (status.rows_committed, status.duplicates, status.rows_pending) == (20, 0, 0)
    assert status.offsets == {TRADES_TOPIC: [1, 1]}
    assert desk.ids() == list(range(20))


def test_a_crash_does_not_lose_the_batch_that_was_not_written(desk: Desk) -> None:
    """Trap 1: the shutdown path committed offsets of a batch whose write had failed."""
    desk.log.publish(FIRST, trades(range(1_000)))
    writer = desk.writer(faults=kill_at("staged"))
    with pytest.raises(Killed):
        writer.drain()
    writer.close()
    assert desk.ids() == []
    assert desk.writer().drain()
    assert desk.ids() == list(range(1_000))


@pytest.mark.parametrize("point", COMMIT_POINTS)
def test_a_crash_at_any_point_neither_loses_nor_doubles(desk: Desk, point: str) -> None:
    """Trap 5: a crash between append and offset commit duplicated rows. Here there is no between."""
    desk.log.publish(FIRST, trades(range(10)))
    assert desk.writer().drain()
    desk.log.publish(FIRST, trades(range(10, 25)))
    desk.log.publish(SECOND, trades(range(100, 110), "ETHUSDT"))
    writer = desk.writer(faults=kill_at(point))
    with pytest.raises(Killed):
        writer.drain()
    assert desk.writer().drain()
    assert desk.ids() == [*range(25), *range(100, 110)]


@pytest.mark.parametrize("point", ["before_genesis", "genesis", *COMMIT_POINTS])
def test_a_crash_before_or_during_the_very_first_commit_loses_nothing(desk: Desk, point: str) -> None:
    """The most used peer lost 39,000 to 60,000 rows for good here: without an offset it started at the latest."""
    desk.log.publish(FIRST, trades(range(10)))
    with pytest.raises(Killed):
        desk.writer(faults=kill_at(point)).drain()
    desk.log.publish(FIRST, trades(range(10, 20)))
    assert desk.writer().drain()
    assert desk.ids() == list(range(20))


def test_repeated_rows_are_dropped_and_counted_across_restarts(desk: Desk) -> None:
    """Trap 5: message ids were random, so nothing could remove what a reconnect or a replay sent again."""
    desk.log.publish(FIRST, trades(range(10)))
    desk.log.publish(FIRST, trades(range(5, 15)))
    writer = desk.writer()
    assert writer.drain()
    assert writer.status().duplicates == 5
    desk.log.publish(FIRST, trades(range(20)))
    again = desk.writer()
    assert again.drain()
    assert again.status().duplicates == 15
    assert desk.ids() == list(range(20))


def test_a_zombie_beside_its_replacement_doubles_nothing(desk: Desk) -> None:
    """Trap 20. It read and decided before its replacement committed the same records, and commits afterwards."""
    desk.log.publish(FIRST, trades(range(10)))
    zombie = desk.writer()
    until(zombie, "rows_pending", 10)
    assert desk.writer().drain()
    desk.log.publish(FIRST, trades(range(10, 20)))
    assert zombie.drain()
    assert zombie.status().worlds_moved == 1
    assert desk.ids() == list(range(20))


def test_one_bad_record_does_not_take_its_batch_with_it(desk: Desk) -> None:
    """Traps 2 and 3: the whole batch went to a dead-letter file, or the bad ones were skipped and committed."""
    desk.log.publish(FIRST, trades(range(10)))
    desk.log.append(FIRST, b"\x00not arrow", [("k2ray-schema", b"trades/1"), ("k2ray-kind", b"rows")])
    desk.log.append(FIRST, *encode_rows("quotes", quotes(range(5))))
    desk.log.publish(FIRST, trades(range(10, 20)))
    writer = desk.writer()
    assert writer.drain()
    assert desk.ids() == list(range(20))
    assert [(letter[0], letter[1], letter[3]) for letter in desk.letters.letters] == [
        ("binance", b"\x00not arrow", f"{TRADES_TOPIC}[0]@1"),
        ("binance", desk.log.partitions[FIRST][2][0], f"{TRADES_TOPIC}[0]@2"),
    ]
    assert "corrupt" in desk.letters.letters[0][2]
    assert "another table" in desk.letters.letters[1][2]
    assert writer.status().dead_letters == 2


def test_one_bad_row_does_not_take_its_record_with_it(desk: Desk) -> None:
    """Trap 2. A time beyond year 9999 cannot be written down by Python's own dates, so it would stop every commit."""
    rows = trades(range(3))
    times = rows.column("timestamp").cast(pa.int64()).to_pylist()
    times[1] = 2**62
    at = rows.schema.get_field_index("timestamp")
    desk.log.publish(
        FIRST, rows.set_column(at, rows.schema.field(at), pa.array(times).cast(rows.schema.field(at).type))
    )
    assert desk.writer().drain()
    assert desk.ids() == [0, 2]
    (letter,) = desk.letters.letters
    kept = decode(letter[1], encode_rows("trades", rows)[1])
    assert isinstance(kept, pa.RecordBatch)
    assert kept.column("source_sequence").to_pylist() == [1]
    assert "event time" in letter[2]
    assert times[0] > EARLIEST_US


def test_a_quantity_beyond_eighteen_digits_is_stored_exactly(desk: Desk) -> None:
    """Trap 2: 12345678901.5 overflowed decimal(18,8) and sent its whole batch away."""
    rows = trades(range(2))
    at = rows.schema.get_field_index("quantity")
    wanted = [Decimal("12345678901.5"), Decimal("0.000000000000000001")]
    desk.log.publish(FIRST, rows.set_column(at, rows.schema.field(at), pa.array(wanted, rows.schema.field(at).type)))
    assert desk.writer().drain()
    stored = open_table(desk.folder).scan().to_arrow()["quantity"].to_pylist()
    assert sorted(stored) == sorted(wanted)
    assert desk.letters.letters == []


def test_nothing_is_committed_past_a_dead_letter_that_is_not_delivered(desk: Desk) -> None:
    """Trap 3: 28 of 28 undecodable records were lost, none of them in the dead-letter file."""
    desk.letters.away = True
    desk.log.append(FIRST, b"junk", [])
    desk.log.publish(FIRST, trades(range(5)))
    writer = desk.writer()
    with pytest.raises(BrokerUnavailable, match="dead letters"):
        writer.drain()
    assert desk.ids() == []
    assert writer.status().trouble is not None
    desk.letters.away = False
    assert writer.drain()
    assert desk.ids() == list(range(5))
    assert len(desk.letters.letters) == 1
    assert writer.status().trouble is None


def test_quotes_are_stored_by_the_same_writer(desk: Desk) -> None:
    """Trap 14: the consumer always wrote trades, so quotes could not be stored."""
    desk.log.publish((QUOTES_TOPIC, 0), quotes([3, 9, 12]), table="quotes")
    desk.log.publish((QUOTES_TOPIC, 0), quotes([9, 12, 15]), table="quotes")
    writer = desk.writer(table="quotes")
    assert writer.drain()
    assert writer.status().duplicates == 2
    assert desk.ids("quotes") == [3, 9, 12, 15]
    stored = open_table(desk.folder, table_name="quotes").scan().to_arrow()
    assert stored.column_names[3:9] == [
        "quote_id",
        "timestamp",
        "bid_price",
        "bid_quantity",
        "ask_price",
        "ask_quantity",
    ]


def test_a_quiet_log_causes_no_commit_and_few_rows_wait_for_the_interval(desk: Desk) -> None:
    """Trap 23: a commit after the first 100 ms without a record made 22 commits in 10 s with 7 rows each."""
    writer = desk.writer(settings=lake_settings(desk.folder, interval_s=5), clock=desk.clock)
    desk.log.publish(FIRST, trades(range(7)))
    until(writer, "rows_pending", 7)
    for _ in range(20):
        desk.clock.advance(0.2)
        writer.step(0)
    assert writer.status().commits == 0
    desk.clock.advance(1.1)
    until(writer, "commits", 1)
    desk.clock.advance(3600)
    for _ in range(20):
        writer.step(0)
    assert writer.status().commits == 1


def test_offsets_that_moved_over_duplicates_alone_are_committed_at_a_slower_pace(desk: Desk) -> None:
    writer = desk.writer(settings=lake_settings(desk.folder, interval_s=5), clock=desk.clock)
    desk.log.publish(FIRST, trades(range(7)))
    assert writer.drain()
    desk.log.publish(FIRST, trades(range(7)))
    until(writer, "duplicates", 7)
    desk.clock.advance(6)
    writer.step(0)
    assert writer.status().commits == 1
    desk.clock.advance(5 * IDLE_COMMIT_FACTOR)
    until(writer, "commits", 2)
    assert writer.status().offsets == {TRADES_TOPIC: [2, 0]}


def test_a_full_batch_is_committed_before_its_time(desk: Desk) -> None:
    for start in range(0, 1_000, 100):
        desk.log.publish(FIRST, trades(range(start, start + 100)))
    writer = desk.writer(settings=lake_settings(desk.folder, max_rows=300), max_records=1)
    until(writer, "rows_committed", 900)
    assert writer.status().commits == 3
    smaller = desk.writer(settings=lake_settings(desk.folder, max_bytes=8_000), max_records=1)
    desk.log.publish(SECOND, trades(range(2_000, 2_500), "ETHUSDT"))
    until(smaller, "commits", 1)


def test_reading_goes_on_while_a_commit_is_on_its_way_and_stops_at_one_batch_ahead(desk: Desk) -> None:
    for start in range(0, 1_000, 100):
        desk.log.publish(FIRST, trades(range(start, start + 100)))
    go_on = Event()

    def fault(point: str) -> None:
        if point == "staged":
            go_on.wait(30)

    writer = desk.writer(settings=lake_settings(desk.folder, max_rows=200), faults=fault, max_records=1)
    for _ in range(100):
        writer.step(0.001)
    assert writer.status().rows_pending == 400
    assert writer.status().lag_trades > 0
    go_on.set()
    until(writer, "rows_committed", 1_000)


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

    def away(*_: Any, **__: Any) -> Any:
        raise OSError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "commit_table", away)
        patch.setattr(catalog, "load_table", away)
        for _ in range(3):
            with pytest.raises(CatalogUnavailable):
                writer.drain()
        assert metadata.exists()
    assert writer.drain()
    assert desk.ids() == list(range(10))


def test_the_broker_is_not_asked_for_lag_with_every_batch(desk: Desk) -> None:
    """Trap 22: asking cost 1.7 s a batch, 488 instead of 3,660 messages a second."""
    writer = desk.writer(max_records=1)
    writer.position()
    asked = desk.log.questions
    for start in range(0, 500, 10):
        desk.log.publish(FIRST, trades(range(start, start + 10)))
    until(writer, "rows_pending", 500)
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


def test_every_metric_of_the_writer_moves(desk: Desk) -> None:
    """Trap 27: consumer-lag metrics were never set."""

    def value(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, {"table": "trades", **labels}) or 0.0

    names = ("committed_rows_total", "duplicate_rows_total", "unstorable_records_total", "worlds_moved_total")
    before = {name: value(f"k2ray_{name}") for name in names}
    jumps = {kind: value("k2ray_offset_jumps_total", kind=kind) for kind in ("hole", "rewind")}
    restarts = value("k2ray_ledger_events_total", kind="space_opened")
    seconds = value("k2ray_commit_seconds_count")
    desk.log.publish(FIRST, trades([1, 2, 3, 7, 8]))
    desk.log.publish(FIRST, trades([7, 8]))
    desk.log.append(FIRST, b"junk", [])
    zombie = desk.writer()
    until(zombie, "rows_pending", 5)
    assert desk.writer().drain()
    assert value("k2ray_open_gaps") == 1
    assert zombie.drain()
    for name in names:
        assert value(f"k2ray_{name}") > before[name], name
    assert value("k2ray_commit_seconds_count") > seconds
    slow = desk.writer(max_records=1)
    for start in range(0, 1_000, 100):
        desk.log.publish(FIRST, trades(range(start + 100, start + 200)))
    until(slow, "records", 2)
    assert value("k2ray_writer_lag_trades") > 0
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
