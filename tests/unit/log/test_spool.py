"""The spool: first in, first out, across deaths; bounded, and honest about what it gave up."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from k2ray.log import spool as spool_module
from k2ray.log.spool import Spool
from k2ray.log.spool_file import SpoolRecord, SpoolWriter, measure, read_records

LARGE = 1 << 30


def record(number: int, *, topic: str = "market.crypto.trades.binance", size: int = 10) -> SpoolRecord:
    value = str(number).encode().rjust(size, b"0")
    return SpoolRecord(topic, number % 4, value, [("k2ray-kind", b"rows"), ("n", str(number).encode())], 5)


def number_of(record: SpoolRecord) -> int:
    return int(record.value)


def drain(spool: Spool) -> list[int]:
    numbers = []
    while (taken := spool.take()) is not None:
        file, records = taken
        numbers += [number_of(record) for record in records]
        spool.done(file)
    return numbers


def test_records_come_out_whole_and_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LARGE)
    assert not spool.waiting
    for number in range(5):
        assert spool.append(record(number))
    assert (spool.records, spool.rows, spool.waiting) == (5, 25, True)
    taken = spool.take()
    assert taken is not None
    assert taken[1] == [record(number) for number in range(5)]
    assert not spool.waiting
    spool.done(taken[0])
    assert (spool.records, spool.bytes) == (0, 0)
    assert spool.take() is None
    spool.close()


def test_the_next_process_finds_everything_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "FILE_BYTES", 3000)
    first = Spool(tmp_path, LARGE)
    for number in range(20):
        first.append(record(number))
    first.close()
    second = Spool(tmp_path, LARGE)
    assert (second.records, second.rows) == (20, 100)
    assert second.bytes == sum(path.stat().st_size for path in tmp_path.glob("slot-0/*.arrow"))
    for number in range(20, 25):
        second.append(record(number))
    assert drain(second) == list(range(25))
    second.close()


def test_a_death_in_the_middle_of_a_replay_repeats_and_loses_nothing(tmp_path: Path) -> None:
    first = Spool(tmp_path, LARGE)
    first.append(record(1))
    assert first.take() is not None
    first.append(record(2))
    first.close()  # without done(): Kafka had not confirmed the first file
    second = Spool(tmp_path, LARGE)
    assert drain(second) == [1, 2]
    second.close()


@pytest.mark.parametrize("cut", [1, 7, 300])
def test_a_torn_last_record_does_not_take_the_whole_ones_with_it(tmp_path: Path, cut: int) -> None:
    spool = Spool(tmp_path, LARGE)
    for number in range(4):
        spool.append(record(number))
    spool.close()
    (path,) = tmp_path.glob("slot-0/*.arrow")
    path.write_bytes(path.read_bytes()[:-cut])
    again = Spool(tmp_path, LARGE)
    assert again.records == 3
    again.append(record(9))
    assert drain(again) == [0, 1, 2, 9]
    again.close()


def test_a_file_torn_before_its_first_record_is_nothing(tmp_path: Path) -> None:
    for name, size in (("00000000000000001000", 0), ("00000000000000002000", 17)):
        (tmp_path / "slot-0").mkdir(exist_ok=True)
        (tmp_path / "slot-0" / f"{name}.arrow").write_bytes(b"\xff" * size)
    spool = Spool(tmp_path, LARGE)
    assert spool.records == 0
    assert drain(spool) == []
    assert spool.bytes == 0
    spool.close()


def test_what_failed_goes_before_what_came_after_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LARGE)
    spool.append(record(3))
    spool.append_failed(record(1))
    spool.append_failed(record(2))
    spool.append(record(4))
    assert drain(spool) == [1, 2, 3, 4]
    spool.append_failed(record(5))
    spool.append(record(6))
    taken = spool.take()
    assert taken is not None
    spool.put_back(taken[0])
    assert drain(spool) == [5, 6]
    spool.close()


def test_failures_while_a_file_of_failures_is_under_way_get_a_file_of_their_own(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LARGE)
    spool.append_failed(record(1))
    first = spool.take()
    assert first is not None
    spool.append_failed(record(2))
    second = spool.take()
    assert second is not None
    assert first[0] < second[0]
    spool.put_back(first[0])
    spool.put_back(second[0])
    assert drain(spool) == [1, 2]
    assert not spool.shed
    spool.close()


def test_shed_messages_were_gone_and_uncounted(tmp_path: Path) -> None:
    """Trap 9: shed messages were gone and uncounted."""
    spool = Spool(tmp_path, 12_000)
    kept = [spool.append(record(number, size=1000)) for number in range(20)]
    assert kept.index(False) > 3
    assert spool.bytes <= 12_000
    shed = spool.shed["market.crypto.trades.binance"]
    assert (shed.records, shed.rows, shed.bytes) == (kept.count(False), 5 * kept.count(False), 1000 * kept.count(False))
    assert drain(spool) == list(range(kept.index(False)))
    assert spool.append(record(99))
    spool.close()


def test_a_broken_disk_is_counted_and_what_is_whole_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, LARGE)
    spool.append(record(1))

    def full(self: SpoolWriter, records: list[SpoolRecord]) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SpoolWriter, "append", full)
        assert not spool.append(record(2))
        assert not spool.append_failed(record(2))
    assert spool.shed["market.crypto.trades.binance"].records == 2
    assert spool.append(record(3))
    assert drain(spool) == [1, 3]
    spool.close()


def test_two_generations_beside_each_other_do_not_touch_each_others_files(tmp_path: Path) -> None:
    old = Spool(tmp_path, LARGE)
    old.append(record(1))
    new = Spool(tmp_path, LARGE)
    new.append(record(2))
    assert new.adopt() == 0
    old.close()
    assert new.adopt() == 1
    new.append(record(3))
    assert drain(new) == [2, 1, 3]
    new.close()


def test_what_a_producer_left_that_nobody_wants_any_more_is_delivered_too(tmp_path: Path) -> None:
    """Fewer connections than before: the rows that the last feed could not deliver lay in its folder for good."""
    gone = Spool(tmp_path / "binance-1", LARGE)
    gone.append(record(1))
    heir = Spool(tmp_path / "binance-0", LARGE, [tmp_path / "binance-1", tmp_path / "never was"])
    assert not heir.waiting, "it still lives, and delivers its own"
    gone.close()
    heir.append(record(2))
    assert heir.adopt() == 1
    assert sorted(drain(heir)) == [1, 2]
    heir.close()
    assert list(tmp_path.glob("*/slot-*/*.arrow")) == []


def test_a_record_that_kafka_refuses_is_kept_aside(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LARGE)
    assert spool.set_aside(record(7), "too large for the broker")
    assert spool.set_aside(record(8), "too large for the broker")
    assert not spool.waiting
    found = [number_of(item) for path in sorted(tmp_path.glob("slot-0/refused/*")) for item in read_records(path)]
    assert found == [7, 8]
    spool.close()


def test_measuring_agrees_with_reading(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "x.arrow")
    writer.append([record(0)])
    writer.append([record(1), record(2)])
    writer.close()
    content = measure(tmp_path / "x.arrow")
    assert content == (3, 15, 0)


def test_many_small_records_go_in_together_and_come_out_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path, LARGE)
    assert spool.append(record(3), record(4))
    assert spool.append_failed(record(1), record(2))
    assert spool.append(record(5))
    assert (spool.records, spool.rows) == (5, 25)
    assert drain(spool) == [1, 2, 3, 4, 5]
    spool.close()


def test_records_that_go_in_together_are_shed_together_and_each_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 4_000)
    assert not spool.append(*(record(number, size=500) for number in range(10)))
    assert spool.shed["market.crypto.trades.binance"].records == 10
    assert spool.append(record(1))
    spool.close()


@settings(max_examples=100, deadline=None)
@example(steps=["append", "failed", "take", "failed"])
@given(steps=st.lists(st.sampled_from(["append", "failed", "take", "done", "back", "restart"]), max_size=40))
def test_nothing_is_lost_whatever_happens_in_whatever_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, LARGE)
    put, confirmed, taken, number = set(), set(), {}, 0
    for step in steps:
        if step in {"append", "failed"}:
            number += 1
            put.add(number)
            assert (spool.append if step == "append" else spool.append_failed)(record(number))
        elif step == "take" and (found := spool.take()) is not None:
            taken[found[0]] = {number_of(item) for item in found[1]}
        elif step == "done" and taken:
            file = min(taken)
            confirmed |= taken.pop(file)
            spool.done(file)
        elif step == "back" and taken:
            file = max(taken)
            del taken[file]
            spool.put_back(file)
        elif step == "restart":
            spool.close()
            spool, taken = Spool(folder, LARGE), {}
        assert spool.records == len(put - confirmed)
    for file in taken:
        spool.put_back(file)
    assert set(drain(spool)) == put - confirmed
    assert not spool.shed
    spool.close()
