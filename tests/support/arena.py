"""A system under load for chaos cases: simulated exchange, local Kafka, supervised actors in the session's Ray cluster.

`verify` is the judge: ids in Iceberg against what is in Kafka (nothing lost, nothing twice, nothing invented), and what
the exchange generated and Kafka never got against the gaps of the committed ledger.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import fastavro
import psutil
import pyarrow as pa

from actors import edge
from actors.names import SUPERVISOR, ActorName, wanted_actors
from actors.supervisor import system_status
from actors.wanted import Wanted, write_wanted
from k2ray.errors import SupervisorUnavailable
from k2ray.lake.catalog import load_table, open_catalog
from k2ray.lake.ledger_file import load_ledger
from k2ray.lake.progress import committed_progress
from k2ray.layout import DataDir
from k2ray.log.broker import LocalBroker
from k2ray.log.consumer import LogReader, Position
from k2ray.log.records import LogRecord
from k2ray.log.topics import ensure_topics, table_topics
from k2ray.settings import Settings
from k2ray.sim.audit import data_files
from k2ray.wire.avro_schema import SCHEMAS
from k2ray.wire.codec import Seal, decode
from k2ray.wire.framing import FRAMING_BYTES
from tests.support.eventually import eventually
from tests.support.ray_cluster import SmallCluster
from tests.support.sim import Sim

PATIENCE_S = 180
"""Ends what hangs; here it all takes seconds. At load 25 the start of an actor was seen to take a minute."""

CHANNEL_OF = {"trades": "trade", "quotes": "bookTicker"}

# Far more crashes than in any honest minute: they are ours, so nobody is given up for them.
CRASHES = {"crash_loop_restarts": 1_000, "backoff_max_s": 1}
AVRO_SCHEMAS = {table: fastavro.parse_schema(json.loads(schema)) for table, schema in SCHEMAS.items()}

SUPERVISION = {
    "health_interval_s": 0.5,
    "health_timeout_s": 20,
    "start_timeout_s": 180,
    "drain_timeout_s": 30,
    "replace_pause_s": 1,
} | CRASHES


@dataclass(frozen=True)
class Verdict:
    """What a comparison found; counts of ids.

    Attributes:
        table: Which table.
        in_kafka: Different ids in Kafka below the snapshot's offsets.
        stored: Rows in the snapshot.
        lost: In Kafka and not stored.
        duplicated: Copies beyond the first.
        invented: Stored and not in Kafka.
        never_produced: Generated between the first and the last id in Kafka, and not in Kafka.
        unexplained: Of these, not in a gap of the committed ledger (trades; quotes prove no gaps).
    """

    table: str
    in_kafka: int
    stored: int
    lost: int
    duplicated: int
    invented: int
    never_produced: int
    unexplained: int

    @property
    def exact(self) -> bool:
        return not (self.lost or self.duplicated or self.invented or self.unexplained)


@dataclass
class Arena:
    """A system of its own namespace, topics and tables.

    Attributes:
        settings: With Kafka's address.
        sim: The exchange.
        own_broker: Whether a broker lives in this folder and the supervisor keeps it alive.
    """

    settings: Settings
    sim: Sim
    own_broker: bool = False
    tables: tuple[str, ...] = ("trades",)
    _pids: set[int] = field(default_factory=set)

    @property
    def layout(self) -> DataDir:
        return DataDir(self.settings.data_dir)

    def start(self) -> None:
        """Start supervisor and actors; does not wait for them."""
        ensure_topics(self.bootstrap, self.settings)
        actors = {name: edge.CHILD_CLASSES[name.split(":")[0]] for name in wanted_actors(self.settings)}
        wanted = Wanted(1, self.settings.to_json(), actors, local_broker=self.own_broker)
        write_wanted(self.layout.run, wanted)
        edge.start_supervisor(self.layout.namespace, str(self.layout.root))

    @property
    def bootstrap(self) -> str:
        return str(self.settings.kafka.bootstrap_servers)

    def status(self) -> dict[str, Any]:
        try:
            status = system_status(self.layout.namespace, 10)
        except SupervisorUnavailable:
            return {"actors": [], "settled": False}
        self._pids |= {actor["pid"] for actor in status["actors"] if actor["pid"]}
        return status

    def actor(self, logical: str) -> dict[str, Any]:
        return next((a for a in self.status()["actors"] if a["name"].split("#")[0] == logical), {})

    def running(self, logical: str, *, after: int = 0) -> dict[str, Any]:
        """Wait until a generation above `after` runs, and return its status."""

        def look() -> dict[str, Any]:
            actor = self.actor(logical)
            return actor if actor.get("state") == "running" and actor["generation"] > after else {}

        return eventually(look, f"{logical} runs after generation {after}", timeout_s=PATIENCE_S)

    def replace(self, logical: str, reason: str = "operator") -> int:
        """Have an actor replaced, make before break; returns the new generation, not waiting for it."""
        supervisor = edge.find(SUPERVISOR, self.layout.namespace)
        begun: dict[str, int] = edge.ask(supervisor, "replace", logical, reason, timeout_s=30)
        return begun["generation"]

    def all_running(self) -> None:
        for logical in wanted_actors(self.settings):
            self.running(logical)

    def arm(self, logical: str, point: str, wish: str) -> Path:
        """Let the actor kill or stop itself at a point; the returned file is gone once it did."""
        armed = self.layout.run / "faults" / f"{logical}@{point}"
        armed.parent.mkdir(parents=True, exist_ok=True)
        armed.write_text(wish)
        return armed

    def committed(self, table: str = "trades") -> int:
        """Return how many rows the table's newest snapshot holds; 0 without a table."""
        loaded = load_table(self._catalog(), self.settings, table)
        snapshot = loaded.current_snapshot() if loaded is not None else None
        return int(snapshot.summary["total-records"]) if snapshot is not None and snapshot.summary is not None else 0

    def more_commits(self, table: str = "trades", rows: int = 1) -> None:
        """Wait until the table has grown by some rows."""
        before = self.committed(table)
        eventually(lambda: self.committed(table) >= before + rows, f"{table} grows", timeout_s=PATIENCE_S, pause_s=0.1)

    def verify(self) -> list[Verdict]:
        """Wait until what is in Kafka now is committed, and compare."""
        return [self._verify(table) for table in self.tables]

    def stop(self) -> None:
        """Drain, then end the supervisor; nothing of this arena lives afterwards."""
        write_wanted(self.layout.run, Wanted(1, self.settings.to_json(), {}, stopping=True))
        with contextlib.suppress(AssertionError):
            eventually(lambda: self.status()["settled"], "drained", timeout_s=70)
        for name in edge.list_children(self.layout.namespace):
            edge.kill(str(name), self.layout.namespace, None, None)
        edge.kill(SUPERVISOR, self.layout.namespace, None, None)
        for pid in self._pids:
            if edge.is_actor_process(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        eventually(lambda: not any(map(edge.is_actor_process, self._pids)), "actors gone", timeout_s=20)

    def _catalog(self) -> Any:
        return open_catalog(self.settings, self.layout)

    def _verify(self, table: str) -> Verdict:
        topics = table_topics(self.settings, table)
        reader = LogReader(self.bootstrap)
        try:
            keys = [(topic, partition) for topic in topics for partition in range(self.settings.kafka.partitions)]
            ends = {key: reader.watermarks(key)[1] for key in keys}

            def caught_up() -> Any:
                loaded = load_table(self._catalog(), self.settings, table)
                progress = committed_progress(loaded.metadata) if loaded is not None else None
                if progress is None:
                    return None
                behind = [key for key in keys if key not in progress.offsets or progress.offsets[key].next < ends[key]]
                return None if any(ends[key] for key in behind) else (loaded, progress)

            loaded, progress = eventually(caught_up, f"{table} is caught up", timeout_s=PATIENCE_S, pause_s=0.2)
            below = {key: at.next for key, at in progress.offsets.items()}
            produced = _read_ids(reader, below)
        finally:
            reader.close()
        gaps = [
            (gap.symbol, gap.first_id, gap.last_id)
            for gap in load_ledger(loaded.io, progress, table).gaps()
            if not gap.sequence_space.startswith("agg")
        ]
        return _compare(table, list(data_files(loaded)), produced, gaps, self.sim.truth_now())


def _read_ids(reader: LogReader, below: dict[tuple[str, int], int]) -> pa.Table:
    """Return symbol and id of every row in Kafka below the offsets, repeated ones included."""
    pieces = [pa.table({"symbol": pa.array([], pa.string()), "id": pa.array([], pa.int64())})]
    for key, end in below.items():
        position = reader.watermarks(key)[0]
        if position >= end:
            continue
        reader.assign({key: Position(position)})
        while position < end:
            records = reader.poll(5_000, 5.0)
            assert records, f"{key} ends at {position}, below the committed {end}"
            for record in records:
                position = record.offset + 1
                if record.offset >= end:
                    break
                if not record.headers and record.value[:1] != b"\0":
                    continue  # poison that a test put there
                rows = decode(record.value, record.headers) if record.headers else _avro_ids(record)
                if not isinstance(rows, Seal):
                    symbol = rows.column("symbol").cast(pa.string())
                    pieces.append(pa.table({"symbol": symbol, "id": rows.column("source_sequence")}))
    return pa.concat_tables(pieces)


def _avro_ids(record: LogRecord) -> pa.RecordBatch:
    """Read an Avro record with a reader that is not ours."""
    table = next(table for table in AVRO_SCHEMAS if f".{table}." in record.topic)
    row: Any = fastavro.schemaless_reader(io.BytesIO(record.value[FRAMING_BYTES:]), AVRO_SCHEMAS[table], None)
    return pa.RecordBatch.from_pydict({"symbol": [row["symbol"]], "source_sequence": [row["source_sequence"]]})


def _compare(
    table: str, files: list[str], produced: pa.Table, gaps: list[tuple[str, int, int]], truth: pa.Table
) -> Verdict:
    with duckdb.connect() as connection:
        connection.register("produced_rows", produced)
        connection.register("truth_rows", truth)
        if files:
            query = "CREATE TABLE stored AS SELECT symbol, source_sequence AS id FROM read_parquet($files)"
            connection.execute(query, {"files": files})
        else:
            connection.execute("CREATE TABLE stored (symbol VARCHAR, id BIGINT)")
        connection.execute("CREATE TABLE produced AS SELECT DISTINCT symbol, id FROM produced_rows")
        connection.execute("CREATE TABLE gaps (symbol VARCHAR, first_id BIGINT, last_id BIGINT)")
        if gaps:
            connection.executemany("INSERT INTO gaps VALUES (?, ?, ?)", gaps)
        connection.execute(
            """CREATE TABLE missing AS
            SELECT DISTINCT sent.symbol::VARCHAR AS symbol, sent.id FROM truth_rows sent
            JOIN (SELECT symbol, min(id) AS low, max(id) AS high FROM produced GROUP BY ALL) heard
              ON heard.symbol = sent.symbol::VARCHAR AND sent.id BETWEEN heard.low AND heard.high
            ANTI JOIN produced ON produced.symbol = sent.symbol::VARCHAR AND produced.id = sent.id
            WHERE sent.channel::VARCHAR = $channel""",
            {"channel": CHANNEL_OF[table]},
        )
        row = connection.execute(
            """SELECT (SELECT count(*) FROM produced), (SELECT count(*) FROM stored),
            (SELECT count(*) FROM produced ANTI JOIN stored USING (symbol, id)),
            (SELECT count(*) - count(DISTINCT (symbol, id)) FROM stored),
            (SELECT count(*) FROM stored ANTI JOIN produced USING (symbol, id)),
            (SELECT count(*) FROM missing),
            (SELECT count(*) FROM missing ANTI JOIN gaps
             ON gaps.symbol = missing.symbol AND missing.id BETWEEN gaps.first_id AND gaps.last_id)"""
        ).fetchone()
    assert row is not None
    *counts, unexplained = row
    return Verdict(table, *counts, unexplained if table == "trades" else 0)


def arena_settings(
    ray: SmallCluster,
    folder: Path,
    sim: Sim,
    bootstrap: str,
    prefix: str,
    channels: tuple[str, ...],
    backfill: Mapping[str, object] | None = None,
    more: Mapping[str, object] | None = None,
) -> Settings:
    """Return settings of a system of its own; without `backfill`, its section, gaps stay; `more` of the exchange's."""
    exchange = {
        **(more or {}),
        "ws_url": sim.ws_url,
        "rest_url": sim.rest_url,
        "channels": list(channels),
        "symbols": ["BTCUSDT", "ETHUSDT", "BNBUSDT"],
    }
    return ray.settings(
        folder,
        tls={"ca_file": str(sim.ca_file)},
        exchanges={"binance": exchange},
        kafka={"bootstrap_servers": bootstrap, "topic_prefix": prefix, "partitions": 2, "delivery_timeout_s": 5},
        feed={"backoff_initial_s": 0.2, "backoff_max_s": 1},
        backfill=backfill or {"enabled": False},
        lake={"commit": {"interval_s": 0.5}, "upkeep": {"interval_s": 5}},
        supervision=SUPERVISION,
    )


@contextlib.contextmanager
def standing_arena(
    ray: SmallCluster,
    folder: Path,
    sim: Sim,
    channels: tuple[str, ...] = ("trades", "quotes"),
    backfill: Mapping[str, object] | None = None,
    more: Mapping[str, object] | None = None,
) -> Iterator[Arena]:
    """Run with a broker of its own, which the supervisor keeps alive; `more` goes to the exchange's settings."""
    layout = DataDir(folder)
    broker = LocalBroker(layout)
    try:
        bootstrap = broker.start().bootstrap
        settings = arena_settings(ray, folder, sim, bootstrap, "chaos", channels, backfill, more)
        arena = Arena(settings, sim, own_broker=True, tables=channels)
        try:
            arena.start()
            arena.all_running()
            yield arena
        finally:
            arena.stop()
    finally:
        broker.stop()


@contextlib.contextmanager
def fresh_arena(ray: SmallCluster, folder: Path, beside: Arena, prefix: str) -> Iterator[Arena]:
    """Prepare new topics and a table that does not exist yet, with the broker and exchange of another arena."""
    settings = arena_settings(ray, folder, beside.sim, beside.bootstrap, prefix, ("trades",))
    arena = Arena(settings, beside.sim)
    try:
        yield arena
    finally:
        arena.stop()


def broker_pid(arena: Arena) -> int:
    """Return the pid of the arena's own broker."""
    address = LocalBroker(arena.layout).status(timeout_s=0.2).address
    assert address is not None
    return address.pid


def replica_pids(application: str) -> list[int]:
    """Return the pids of a Serve application's replicas."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::ServeReplica:{application}"):
                found.append(process.pid)
    return found


def rival(arena: Arena) -> tuple[Any, ActorName, str]:
    """Start a second writer of the trades table that no supervisor knows; returns handle, name and namespace."""
    name = ActorName("writer:trades:rival", 1)
    namespace = f"{arena.layout.namespace}-rival"
    handle = edge.start_child(name, edge.CHILD_CLASSES["writer"], arena.settings.to_json(), namespace)
    return handle, name, namespace
