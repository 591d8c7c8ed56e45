"""Full disks, for real: the warehouse's and the spool's are small tmpfs, the broker is refused larger files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from k2ray.errors import DiskFull
from k2ray.lake.upkeep import TableUpkeep
from k2ray.layout import DataDir
from k2ray.log.broker import LocalBroker
from k2ray.log.producer import LogProducer
from k2ray.log.spool import Spool
from k2ray.log.spool_file import SpoolRecord
from k2ray.wire.codec import encode_rows
from tests.conftest import lacking
from tests.support.eventually import eventually
from tests.support.kafka import TestBroker, local_kafka, read_all
from tests.support.lake import lake_settings, trades
from tests.support.small_disk import SmallDisk, lacking_mount, small_disk
from tests.support.writer_desk import FIRST, Desk

MIB = 1_048_576


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    reason = lacking_mount()
    if reason is not None:
        lacking(reason)
    try:
        with small_disk(tmp_path / "small", 16 * MIB) as disk:
            yield disk
    except OSError as error:
        if "mount was refused" not in str(error):
            raise
        lacking(str(error))


def test_the_warehouses_disk_is_full_and_the_writer_keeps_its_batch(disk: SmallDisk) -> None:
    desk = Desk(disk.path)
    writer = desk.writer(settings=lake_settings(disk.path, max_rows=20_000))
    desk.log.publish(FIRST, trades(range(100)))
    assert writer.drain()
    disk.fill(leaving=65_536)
    for number in range(1, 11):
        desk.log.publish(FIRST, trades(range(number * 4_000, (number + 1) * 4_000)))
    for _ in range(5):
        with pytest.raises(DiskFull, match=r"(No space left|disk is full).*make room"):
            writer.drain(30)
    assert "DiskFull" in str(writer.status().trouble)
    assert "make room" in str(writer.status().trouble)
    parquet = list(disk.path.rglob("*.parquet"))
    assert len(parquet) <= 2, "attempts leave nothing behind that would fill the room which somebody makes"
    upkeep = TableUpkeep(lake_settings(disk.path), DataDir(disk.path), "trades")
    upkeep.step()
    assert "MiB are left" in str(upkeep.trouble)
    upkeep.close()
    disk.empty()
    assert writer.drain(60)
    assert writer.status().trouble is None
    assert desk.ids() == [*range(100), *range(4_000, 44_000)]
    desk.close()


def test_the_spools_disk_is_full_what_was_kept_stays_and_the_rest_is_counted(disk: SmallDisk) -> None:
    spool = Spool(disk.path / "spool", 1 << 30)
    records = [SpoolRecord("topic", 0, b"x" * 10_000 + str(number).encode(), [], 5) for number in range(300)]
    for record in records[:100]:
        assert spool.append(record)
    disk.fill()
    kept = [spool.append(record) for record in records[100:200]]
    assert not all(kept)
    shed = kept.count(False)
    assert (spool.shed["topic"].records, spool.shed["topic"].rows) == (shed, 5 * shed)
    files = len(list(disk.path.rglob("*.arrow")))
    assert files < 20, "records that find no room leave no files"
    disk.empty()
    assert all(spool.append(record) for record in records[200:])
    spool.close()
    again = Spool(disk.path / "spool", 1 << 30)
    found = []
    while (taken := again.take()) is not None:
        found += [record.value for record in taken[1]]
        again.done(taken[0])
    again.close()
    wanted = [
        *records[:100],
        *(record for record, ok in zip(records[100:200], kept, strict=True) if ok),
        *records[200:],
    ]
    assert found == [record.value for record in wanted]


@pytest.fixture
def own_broker() -> Iterator[TestBroker]:
    with local_kafka() as broker:
        yield broker


@pytest.mark.chaos_full
@pytest.mark.timeout(400)
def test_the_brokers_disk_is_full_and_the_spool_takes_over(own_broker: TestBroker, tmp_path: Path) -> None:
    """The broker's process is refused to let files grow, as a full disk would; it halts, and is started once there is
    room. A limit of the process needs no right to mount, and the broker cannot tell the difference."""
    settings, topic = own_broker.with_topics(delivery_timeout_s=2)
    producer = LogProducer(
        own_broker.bootstrap, client_id="f", spool=Spool(tmp_path / "spool", 1 << 30), settings=settings.kafka
    )
    sent = 0

    def send(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            producer.publish(topic, 0, *encode_rows("trades", trades(range(sent * 50, (sent + 1) * 50))), 50)
            sent += 1
            producer.poll()

    send(50)
    assert producer.flush(30)
    address = own_broker.broker.status().address
    assert address is not None
    java = psutil.Process(address.pid)
    java.rlimit(psutil.RLIMIT_FSIZE, (1_000, psutil.RLIM_INFINITY))

    def spooling() -> bool:
        send(1)
        return producer.stats().spool_records > 20

    eventually(spooling, "what the broker does not take goes to the spool", timeout_s=90)
    assert producer.stats().shed_records == 0
    if java.is_running():
        java.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
    state = own_broker.broker.status().state
    if state != "running":  # what the supervisor's broker keeper does every second
        own_broker.broker.stop()
        LocalBroker.start(own_broker.broker)
    send(50)
    assert producer.flush(60), "everything arrives once there is room"
    assert producer.close(5)
    records = read_all(own_broker.bootstrap, topic, sent)
    values = {record.value for record in records}
    wanted = {encode_rows("trades", trades(range(number * 50, (number + 1) * 50)))[0] for number in range(sent)}
    assert values == wanted
