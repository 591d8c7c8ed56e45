"""The writer that owns a table: reads its topics, decides, stages, commits. It blocks: give it a thread of its own.

1. **Positions**: newest snapshot's key -> ledger and offsets, held against the log; holes and rewinds are committed.
2. **Decides**: the ledger says new or duplicate (`intake.py`).
3. **Stages** sorted files (`stage.py`).
4. **Commits** files, offsets and ledger as one snapshot behind the fence (`commit.py`), at whichever limit is first;
   what waited in the log for a writer that has just been born has waited already (`backlog.py`).
5. **After any exception** looks whether it landed; if the world moved, drops memory and goes to 1.
6. **Publishes** the snapshot id in its report and status.

3 and 4 run in a second thread while 1 and 2 go on with the next batch: at most one batch is on its way and one is
gathered, which bounds the memory. Nothing but the table remembers progress: a writer that dies is simply started anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from typing import Any

from pyiceberg.catalog import Catalog

from k2ray import metrics
from k2ray.clock import Clock, SystemClock
from k2ray.errors import BrokerUnavailable, CatalogUnavailable, K2rayError, WorldMoved
from k2ray.lake.backlog import Backlog
from k2ray.lake.catalog import open_catalog
from k2ray.lake.commit import Faults, Landed, no_faults
from k2ray.lake.freshness import Freshness
from k2ray.lake.landing import DeadLetters, Landing
from k2ray.lake.progress import Progress
from k2ray.lake.world import Log, World, open_world
from k2ray.lake.writer_status import StepReport, WriterStatus
from k2ray.layout import DataDir
from k2ray.ledger import Gap
from k2ray.log.consumer import LogReader, OffsetLost, Position
from k2ray.log.lag import LagWatch
from k2ray.log.producer import LogProducer
from k2ray.log.records import Fetched, PartitionKey, record_count
from k2ray.log.topics import table_topics
from k2ray.logs import get_logger
from k2ray.settings import Settings
from k2ray.wire.registry import LazyRegistry
from k2ray.wire.schemas import Schemas

log = get_logger(__name__)

IDLE_COMMIT_FACTOR = 12
"""Offsets that moved over duplicates alone are committed at a twelfth of the pace: nothing waits for them."""

BUSY_POLL_S = 0.05
"""Longest wait for records while a commit is running, so that its end is noticed."""

DRAIN_TIMEOUT_S = 15.0
CLOSE_TIMEOUT_S = 5.0


class TableWriter:
    """Writes one table. One thread calls `step`, `drain` and `close`; `status` and `gaps` may be called from any.

    Args:
        settings: All settings.
        layout: Where the default catalog and warehouse are.
        table_name: `trades` or `quotes`.
        bootstrap: Kafka's address.
        clock: Time.
        reader: Kafka; None connects to `bootstrap`.
        letters: Makes the producer for dead letters when the first one is needed; None connects to `bootstrap`.
        catalog: None opens the one of the settings.
        faults: Called at before_genesis, genesis, before_stage, mid_parquet, staged, head_read, inside_commit and
            after_commit, so that chaos tests can kill there.
        schemas: Knows what Avro's schema ids stand for; None asks the registry of the settings.
    """

    def __init__(
        self,
        settings: Settings,
        layout: DataDir,
        table_name: str,
        bootstrap: str,
        *,
        clock: Clock | None = None,
        reader: Log | None = None,
        letters: Callable[[], DeadLetters] | None = None,
        catalog: Catalog | None = None,
        faults: Faults = no_faults,
        schemas: Schemas | None = None,
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._name = table_name
        self._clock = clock or SystemClock()
        self._faults = faults
        self._topics = table_topics(settings, table_name)
        client = f"k2ray-writer-{table_name}"
        self._reader: Log = reader or LogReader(bootstrap, settings.kafka.options, client_id=client)
        self._make_letters = letters or (
            lambda: LogProducer(bootstrap, client_id=client, spool=None, settings=settings.kafka)
        )
        self._letters: DeadLetters | None = None
        self._catalog = catalog
        self._owns_catalog = catalog is None
        self._registry = LazyRegistry(settings, bootstrap)
        self._schemas = schemas or Schemas(self._registry, settings.wire.cache_size)
        self._unread: list[Fetched] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"commit-{table_name}")
        self._world: World | None = None
        self._landing: Landing | None = None
        self._running: Future[Landed] | None = None
        self._lost: OffsetLost | None = None
        self._backlog: Backlog | None = None
        self._lag = LagWatch(self._reader, self._clock)
        self._freshness = Freshness()
        self._gaps: list[Gap] = []
        self._last_commit_s: float | None = None
        self._status = WriterStatus(table_name)

    def position(self) -> None:
        """Forget everything in memory and start from the newest snapshot. `step` does it when needed.

        Raises:
            OperatorNeeded: Another Kafka or topic, a table without key, an unreadable ledger. Stop.
            TryAgain: Catalog or Kafka away, or a topic does not exist yet. Call again after a pause.
        """
        self._forget()
        if self._catalog is None:
            self._catalog = open_catalog(self._settings, self._layout)
        world = open_world(
            self._catalog,
            self._settings,
            self._name,
            self._topics,
            self._reader,
            self._clock.now_us(),
            self._lost,
            self._faults,
            self._schemas,
        )
        progress = self._commit_jumps(world)
        self._reader.assign({key: Position(at.next, at.epoch) for key, at in world.start.positions.items()})
        self._world, self._lost = world, None
        self._backlog = Backlog(world.start.ends if self._backlog is None else {})
        self._gaps = list(world.intake.ledger.gaps())
        self._note_progress(progress)
        self._update(positioned=True, trouble=None, open_gaps=_open(self._gaps))

    def step(self, max_wait_s: float = 0.1) -> StepReport:
        """Do the next piece of work: read and decide what is there, hand a due batch over, take note of what landed.

        Args:
            max_wait_s: Longest wait for records, or for room.

        Raises:
            OperatorNeeded: Stop this writer; a person must decide.
            TryAgain: Something is away. Nothing is lost; call again after a pause.
        """
        try:
            metrics.COMMIT_WAIT_SECONDS.labels(self._name).set(self._waited_s())
            return self._step(max_wait_s)
        except WorldMoved as moved:
            log.warning("the world moved, positioning anew", table=self._name, reason=str(moved))
            self._forget()
            metrics.WORLDS_MOVED.labels(self._name).inc()
            self._update(worlds_moved=self._status.worlds_moved + 1)
            return StepReport()
        except OffsetLost as lost:
            # What was read before is committed first, it may be gone from the log by now; then `position` sees to it.
            log.error("the log lost our position", table=self._name, reason=str(lost))
            self._lost = lost
            return StepReport()
        except K2rayError as error:
            metrics.WRITER_RETRIES.labels(self._name, _what_was_away(error)).inc()
            self._update(trouble=f"{type(error).__name__}: {error}")
            raise

    def drain(self, timeout_s: float = DRAIN_TIMEOUT_S) -> bool:
        """Read on to the log's present end, commit everything that is pending, and return whether all of that is done.

        Raises:
            OperatorNeeded: Stop this writer; a person must decide.
            TryAgain: Something is away; call again after a pause.
        """
        deadline = self._clock.monotonic_s() + timeout_s
        ends: dict[PartitionKey, int] = {}
        while self._clock.monotonic_s() < deadline:
            world = self._world
            if world is None or self._lost is not None:
                self.step(0)
                continue
            ends = ends or {key: self._reader.watermarks(key)[1] for key in world.start.positions}
            if not world.reading.before(ends) and self._landing is None:
                if not world.batch.records:
                    return True
                self._hand_over(world)
            self.step(BUSY_POLL_S)
        return False

    def status(self) -> WriterStatus:
        """Return the present state; from any thread."""
        age = None if self._last_commit_s is None else self._clock.monotonic_s() - self._last_commit_s
        return replace(self._status, last_commit_age_s=age)

    def gaps(self) -> list[Gap]:
        """Return the missing id ranges as of the newest commit, those given up (sealed) included; from any thread."""
        return self._gaps

    def close(self) -> None:
        """Leave without committing: what is pending is still in Kafka. A running commit is waited for."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._reader.close()
        self._registry.close()
        if self._letters is not None:
            self._letters.close(CLOSE_TIMEOUT_S)
        if self._catalog is not None and self._owns_catalog:
            self._catalog.close()

    def _step(self, max_wait_s: float) -> StepReport:
        landed = self._collect()
        report = StepReport() if landed is None else StepReport(committed_rows=landed[0], snapshot_id=landed[1])
        world = self._world
        if world is None or (self._lost is not None and self._landing is None and not world.batch.records):
            self.position()
            return report
        due_in = self._hand_over_if_due(world)
        if self._running is not None and (self._lost is not None or self._is_full(world)):
            wait([self._running], max_wait_s)
            return report
        patience = max_wait_s if due_in is None else min(max_wait_s, max(due_in, 0.0))
        return self._read(world, report, patience if self._running is None else min(patience, BUSY_POLL_S))

    def _read(self, world: World, report: StepReport, patience_s: float) -> StepReport:
        wanted = world.reading.records_wanted(self._settings.lake.commit.max_rows - world.batch.rows)
        # What could not be read yet, since nobody told its schema, comes before anything new.
        items = self._unread = self._unread or self._reader.fetch(wanted, patience_s)
        rows, duplicates = world.take(items, self._clock.monotonic_s()) if items else (0, 0)
        self._unread = []
        if self._backlog is not None:
            self._backlog.note(items)
        records = sum(map(record_count, items))
        lag_trades, lag_s = world.reading.lag(self._lag, self._clock.now_us())
        metrics.WRITER_LAG_TRADES.labels(self._name).set(lag_trades)
        metrics.WRITER_LAG_SECONDS.labels(self._name).set(lag_s)
        self._update(
            records=self._status.records + records,
            duplicates=self._status.duplicates + duplicates,
            rows_pending=world.batch.rows + (self._landing.batch.rows if self._landing else 0),
            lag_trades=lag_trades,
            lag_s=lag_s,
        )
        if self._landing is None:
            # Kafka answered and no commit is outstanding, so nothing is wrong any more; where no row comes, none lands.
            self._update(trouble=None)
        return replace(report, records=records, rows=rows, duplicates=duplicates)

    def _is_full(self, world: World) -> bool:
        limits = self._settings.lake.commit
        return world.batch.rows >= limits.max_rows or world.batch.bytes >= limits.max_bytes

    def _hand_over_if_due(self, world: World) -> float | None:
        """Hand the gathered batch over if a limit is reached; return the seconds until time alone makes it due."""
        interval = self._settings.lake.commit.interval_s
        due_in = world.batch.due_in_s(self._clock.monotonic_s(), interval, interval * IDLE_COMMIT_FACTOR)
        due = due_in is not None and (due_in <= 0 or self._is_full(world) or self._lost is not None)
        if not due and world.batch.rows and self._backlog is not None:
            due = self._backlog.is_overdue(world.reading, self._clock.now_us(), interval)
        if due and self._landing is None:
            self._hand_over(world)
            return None
        return due_in

    def _hand_over(self, world: World) -> None:
        if self._backlog is not None:
            self._backlog.note_handed_over(world.reading)
        self._landing = world.hand_over(self._clock.monotonic_s())
        self._launch(world, self._landing)

    def _launch(self, world: World, landing: Landing) -> None:
        self._running = self._thread.submit(landing.run, world.table, self._name, self._dead_letters, self._faults)

    def _collect(self) -> tuple[int, int] | None:
        """Take note of a commit that ended, as (rows, snapshot id); start it again where an error ended it."""
        landing, world = self._landing, self._world
        if landing is None or world is None:
            return None
        if self._running is None:
            self._launch(world, landing)
        if self._running is None or not self._running.done():
            return None
        running, self._running = self._running, None
        landed = running.result()
        self._landing = None
        self._note_landed(landing, landed)
        return landing.batch.rows, landed.snapshot_id

    def _note_landed(self, landing: Landing, landed: Landed) -> None:
        now = self._clock.monotonic_s()
        batch = landing.batch
        metrics.COMMITTED_ROWS.labels(self._name).inc(batch.rows)
        metrics.DUPLICATE_ROWS.labels(self._name).inc(batch.duplicates)
        metrics.UNSTORABLE_RECORDS.labels(self._name).inc(len(batch.dead))
        metrics.COMMIT_SECONDS.labels(self._name).observe(now - landing.started_s)
        metrics.OPEN_GAPS.labels(self._name).set(_open(landing.gaps))
        for event in batch.events:
            metrics.LEDGER_EVENTS.labels(self._name, event.kind).inc()
            log.warning("ledger", table=self._name, **asdict(event))
        self._freshness.note(batch.event_times, self._clock.now_us())
        for percentile in (50, 99):
            if (seconds := self._freshness.quantile_s(percentile / 100)) is not None:
                metrics.FRESHNESS_SECONDS.labels(self._name, str(percentile)).set(seconds)
        self._gaps = list(landing.gaps)
        self._last_commit_s = now
        self._note_progress(landed.progress)
        self._update(
            rows_committed=self._status.rows_committed + batch.rows,
            rows_pending=self._status.rows_pending - batch.rows,
            dead_letters=self._status.dead_letters + len(batch.dead),
            ledger_events=self._status.ledger_events + len(batch.events),
            commits=self._status.commits + 1,
            commit_s=now - landing.started_s,
            open_gaps=_open(self._gaps),
            freshness_p50_s=self._freshness.quantile_s(0.5),
            freshness_p99_s=self._freshness.quantile_s(0.99),
            trouble=None,
        )

    def _commit_jumps(self, world: World) -> Progress:
        """Record what the log no longer has, in a commit of its own, before anything is read."""
        landing = world.jumps(self._clock.monotonic_s())
        if landing is None:
            return world.progress
        log.error(
            "offsets jump: the log no longer has what was committed or not yet read",
            table=self._name,
            holes=[str(hole) for hole in world.start.holes],
            rewinds=[str(rewind) for rewind in world.start.rewinds],
        )
        landed = landing.run(world.table, self._name, self._dead_letters, self._faults)
        metrics.OFFSET_JUMPS.labels(self._name, "hole").inc(len(world.start.holes))
        metrics.OFFSET_JUMPS.labels(self._name, "rewind").inc(len(world.start.rewinds))
        self._update(
            holes=self._status.holes + sum(hole.end - hole.start for hole in world.start.holes),
            rewinds=self._status.rewinds + len(world.start.rewinds),
        )
        return landed.progress

    def _forget(self) -> None:
        """Drop everything in memory. A commit that is under way is waited for: the look at the head comes after it."""
        if self._running is not None:
            wait([self._running])
        self._running = self._landing = self._world = None
        self._unread = []
        self._update(positioned=False, rows_pending=0)

    def _waited_s(self) -> float:
        """Return how long the oldest row that was read has waited for its commit."""
        batches = [self._landing.batch] if self._landing else []
        batches += [self._world.batch] if self._world else []
        since = [batch.first_row_s for batch in batches if batch.first_row_s is not None]
        return self._clock.monotonic_s() - min(since) if since else 0.0

    def _dead_letters(self) -> DeadLetters:
        if self._letters is None:
            self._letters = self._make_letters()
        return self._letters

    def _note_progress(self, progress: Progress) -> None:
        offsets: dict[str, list[int]] = {}
        for (topic, _), offset in sorted(progress.offsets.items()):
            offsets.setdefault(topic, []).append(offset.next)
        self._update(snapshot_id=progress.snapshot_id, offsets=offsets)

    def _update(self, **changes: Any) -> None:
        self._status = replace(self._status, **changes)


def _what_was_away(error: K2rayError) -> str:
    match error:
        case CatalogUnavailable():
            return "catalog"
        case BrokerUnavailable():
            return "broker"
    return "other"


def _open(gaps: Sequence[Gap]) -> int:
    return sum(not gap.sealed for gap in gaps)
