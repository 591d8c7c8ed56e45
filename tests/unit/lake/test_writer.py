"""The writer, a log in memory and a real table in SQLite: what is stored is what the log says, whatever fails."""

from __future__ import annotations

from decimal import Decimal
from threading import Event

import pyarrow as pa
import pytest

from k2ray.errors import BrokerUnavailable
from k2ray.lake.intake import EARLIEST_US
from k2ray.lake.writer import IDLE_COMMIT_FACTOR
from k2ray.wire.codec import decode, encode_rows
from tests.support.lake import (
    QUOTES_TOPIC,
    TRADES_TOPIC,
    Killed,
    MemoryReader,
    kill_at,
    lake_settings,
    open_table,
    quotes,
    trades,
)
from tests.support.writer_desk import COMMIT_POINTS, FIRST, SECOND, Desk, until


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


def test_trouble_is_over_when_kafka_answers_again_although_nothing_comes_to_commit(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hiccup in a silent market left a writer "not ready" until the next trade, and would fail a deployment."""
    writer = desk.writer()
    assert writer.drain()

    def away(*_: object) -> list[object]:
        raise BrokerUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryReader, "fetch", away)
        with pytest.raises(BrokerUnavailable):
            writer.step(0)
        assert "away" in str(writer.status().trouble)
    writer.step(0)
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


def test_what_waited_for_a_writer_that_was_killed_does_not_wait_for_another_interval(desk: Desk) -> None:
    settings = lake_settings(desk.folder, interval_s=5)
    for at in range(3):
        desk.log.publish(FIRST, trades(range(at * 10, at * 10 + 10)))
    desk.clock.advance(6)
    writer = desk.writer(settings=settings, clock=desk.clock, max_records=1)
    until(writer, "commits", 1)
    assert desk.ids() == list(range(30)), "in one commit, when all of it was read"
    desk.log.publish(FIRST, trades(range(30, 40)))
    until(writer, "rows_pending", 10)
    for _ in range(20):
        writer.step(0)
    assert writer.status().commits == 1, "what comes later waits as always"


def test_rows_that_came_just_before_their_writer_wait_for_the_interval(desk: Desk) -> None:
    """Also those of a writer that lives beside it, until one of them is drained: the fence would refuse the other."""
    desk.log.publish(FIRST, trades(range(10)))
    desk.clock.advance(4)
    writer = desk.writer(settings=lake_settings(desk.folder, interval_s=5), clock=desk.clock)
    until(writer, "rows_pending", 10)
    for _ in range(20):
        writer.step(0)
    assert writer.status().commits == 0
    desk.clock.advance(1.1)
    until(writer, "commits", 1)


def test_a_writer_whose_world_moved_does_not_hurry(desk: Desk) -> None:
    settings = lake_settings(desk.folder, interval_s=5)
    zombie = desk.writer(settings=settings, clock=desk.clock)
    desk.log.publish(FIRST, trades(range(10)))
    until(zombie, "rows_pending", 10)
    assert desk.writer().drain()
    desk.log.publish(FIRST, trades(range(10, 20)))
    desk.clock.advance(6)
    until(zombie, "worlds_moved", 1)
    until(zombie, "rows_pending", 10)
    for _ in range(20):
        zombie.step(0)
    assert zombie.status().commits == 0
    desk.clock.advance(6)
    until(zombie, "commits", 1)
    assert desk.ids() == list(range(20))


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
