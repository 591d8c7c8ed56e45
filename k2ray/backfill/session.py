"""The backfill of one exchange: looks at the ledger, asks for newest ids, fetches pages, produces rows and seals.

Loops share one planner in one event loop; blocking work (catalog, Kafka) is done in threads:

- look: the newest snapshot's ledger -> planner, and what changed -> the gaps table;
- prove (`newest.py`): newest ids by REST -> planner, so that trades missed above the newest row show;
- fill: the planner's pages by REST -> rows with `origin=backfill` in the instrument's own partition, and seals. After
  each round Kafka has confirmed everything before the planner is told, with the partition's end: ids are not asked for
  again until a snapshot has passed that;
- tidy: the gaps table is kept small, since no upkeep actor looks after it.

A crash at any point only means that ids are fetched again: the ledger drops what it has. Trouble outside never ends it.

Next in the flow: 7, `log/producer.py`; an actor gives it a process (`actors/backfill.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2ray import metrics, model
from k2ray.backfill.committed import CommittedLedgers, TableLook, proving_channels
from k2ray.backfill.delivery import Delivery, Item, Letter, LogEnds, Producer, Rows, SealRecord
from k2ray.backfill.fetch import RestReader, SharedBudget
from k2ray.backfill.model import Answer, GiveUp, Page, Policy
from k2ray.backfill.newest import NewestIds
from k2ray.backfill.plan import Planner
from k2ray.backfill.recorder import GapRecorder
from k2ray.backfill.symbols import ask_about
from k2ray.clock import Clock
from k2ray.errors import BadFrame, CatalogUnavailable, ExchangeUnavailable, OperatorNeeded, TryAgain, WorldMoved
from k2ray.exchanges import adapter as adapter_named
from k2ray.exchanges import rest_adapter
from k2ray.exchanges.base import RestPage
from k2ray.exchanges.limits import Limit
from k2ray.ledger import LedgerParams
from k2ray.logs import get_logger
from k2ray.settings import Settings
from k2ray.wire.codec import Seal
from k2ray.wire.encoder import RowEncoder

PAUSE_FIRST_S = 0.5
PAUSE_MAX_S = 60.0
FILLING_SHOWN = 1_000

_log = get_logger(__name__)


class _Pause:
    """Before the exchange is asked again: longer with each failure in a row, and random."""

    def __init__(self) -> None:
        self._limit_s = PAUSE_FIRST_S

    async def wait(self) -> None:
        await asyncio.sleep(random.uniform(0.5, 1.0) * self._limit_s)
        self._limit_s = min(PAUSE_MAX_S, self._limit_s * 2)

    def end(self) -> None:
        self._limit_s = PAUSE_FIRST_S


@dataclass(frozen=True)
class BackfillStatus:
    """What a backfill says about itself; counts are since its start.

    Attributes:
        looks: Snapshots looked at.
        open_gaps, missing_ids, lost_ids: As of the last look.
        rows: Fetched and produced.
        pages: Answered.
        calls: REST questions by outcome.
        asked_early: How often newest ids were asked for because a feed had connected anew.
        sealed_ids: Given up.
        weight_left: What this process may take now.
        banned_s: How long the exchange still wants nothing to be asked.
        trouble: What is in the way at the moment; empty if nothing.
        filling: Channel, symbol, first and last id of what is being fetched or not committed yet; not all if many.
        proofs: Of each stream the newest id that the exchange named, when, and whether it is proven committed; an id
            that is not, but was named only just now, is left out for the one before it.
    """

    looks: int
    open_gaps: int
    missing_ids: int
    lost_ids: int
    rows: int
    pages: int
    calls: Mapping[str, int]
    asked_early: int
    sealed_ids: int
    weight_left: int
    banned_s: float
    trouble: str
    filling: list[tuple[str, str, int, int]]
    proofs: list[dict[str, Any]]


class BackfillSession:
    """Fills the gaps of one exchange.

    Args:
        settings: All settings.
        exchange: Name in `settings.exchanges`.
        producer: Where rows and seals go, without a spool; used from one thread at a time.
        encoder: How rows look in Kafka.
        ends: Where the log's ends are asked.
        ledgers: What is committed.
        recorder: Keeps the gaps table.
        budget: The weight that all processes of the address share.
        tls: From `transport.tls_context`.
        clock: Time.
        transport: Of httpx, for tests that open no socket.
    """

    def __init__(
        self,
        settings: Settings,
        exchange: str,
        producer: Producer,
        encoder: RowEncoder,
        ends: LogEnds,
        ledgers: CommittedLedgers,
        recorder: GapRecorder,
        budget: SharedBudget,
        tls: ssl.SSLContext,
        clock: Clock,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings.backfill
        self._tidy_interval_s = settings.lake.upkeep.interval_s
        self._exchange = exchange
        self._chosen = settings.exchanges.enabled()[exchange]
        self._ledgers = ledgers
        self._recorder = recorder
        self._delivery = Delivery(exchange, producer, encoder, ends, ledgers.partition)
        self._clock = clock
        self._adapter = adapter_named(exchange)
        self._rest = rest_adapter(exchange)
        self._symbols: tuple[str, ...] = ()
        limits = self._chosen.limits
        share = Limit(max(50, int(limits.weight * self._settings.weight_share)), limits.weight_window_s)
        self._reader = RestReader(self._rest, self._chosen.rest_url, tls, share, budget, clock, transport)
        self._channels = [channel.name for channel in proving_channels(settings, exchange)]
        chosen = self._settings
        policy = Policy(
            chosen.grace_s,
            chosen.retry_s,
            chosen.lost_after_answers,
            chosen.max_gap_ids,
            LedgerParams.for_table("trades").tolerance_us,
        )
        rows = {name: min(chosen.page_rows, self._rest.page_rows(name)) for name in self._channels}
        self.planner = Planner(policy, rows)
        asked_of = (self._reader, self._rest, self.planner, self._channels)
        self._newest = NewestIds(*asked_of, chosen.prove_interval_s, clock)
        self._looks: dict[str, TableLook] = {}
        self._looked = asyncio.Event()
        self._filling: list[tuple[str, str, int, int]] = []
        self._proofs: list[dict[str, Any]] = []
        self._trouble: dict[str, str] = {}
        self._look_count = self._rows = self._pages = self._sealed_ids = 0

    async def run(self) -> None:
        """Work until cancelled. What it raises is a programming error, or `OperatorNeeded`."""
        async with self._reader:
            loops = (self._keep_looking(), self._keep_asking(), self._keep_tidying())
            tasks = [asyncio.create_task(loop) for loop in loops]
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    await task
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_asking(self) -> None:
        await self._learn()
        await asyncio.gather(self._newest.run(self._symbols), self._keep_filling())

    def finish(self, timeout_s: float) -> bool:
        """Flush what was produced last, after `run` was cancelled; blocking. Returns whether Kafka has everything."""
        return self._delivery.finish(timeout_s)

    def connected_anew(self, symbols: Iterable[str]) -> None:
        """Ask soon for the newest ids of symbols whose feed was away; from the event loop's thread."""
        self._newest.soon(symbols)

    def status(self) -> BackfillStatus:
        """Return counts; safe to call from another thread."""
        gaps = [gap for look in list(self._looks.values()) for gap in look.gaps]
        troubles = [*list(self._trouble.values()), self._delivery.trouble, self._newest.trouble]
        return BackfillStatus(
            looks=self._look_count,
            open_gaps=sum(not gap.sealed for gap in gaps),
            missing_ids=sum(gap.last_id - gap.first_id + 1 for gap in gaps if not gap.sealed),
            lost_ids=sum(gap.last_id - gap.first_id + 1 for gap in gaps if gap.sealed),
            rows=self._rows,
            pages=self._pages,
            calls=dict(self._reader.calls),
            asked_early=self._newest.early,
            sealed_ids=self._sealed_ids,
            weight_left=self._reader.weight_left,
            banned_s=max(0.0, self._reader.banned_until_s - self._clock.monotonic_s()),
            trouble="; ".join(sorted(filter(None, troubles))),
            filling=self._filling,
            proofs=self._proofs,
        )

    # --- look

    async def _keep_looking(self) -> None:
        while True:
            try:
                for table in self._ledgers.tables:
                    self._looks[table] = await asyncio.to_thread(self._ledgers.look, table)
                self._trouble.pop("catalog", None)
            except TryAgain as error:
                self._trouble["catalog"] = str(error)
                _log.warning("backfill_cannot_look", reason=str(error))
            else:
                self._look_count += 1
                self._observe()
                await self._record()
            self._looked.set()
            await asyncio.sleep(self._settings.interval_s)

    def _observe(self) -> None:
        now_s = self._clock.monotonic_s()
        for look in self._looks.values():
            self.planner.observe(look.streams, now_s)
        self._show()
        metrics.GAP_MISSING_IDS.labels(self._exchange).set(self.status().missing_ids)
        metrics.GAP_OLDEST_SECONDS.labels(self._exchange).set(self.planner.oldest_s(now_s))

    def _show(self) -> None:
        """Prepare what `status` tells other threads."""
        filling = islice(self.planner.filling(), FILLING_SHOWN)
        self._filling = [(channel, symbol, first, last) for (channel, symbol), (first, last) in filling]
        proofs: list[dict[str, Any]] = []
        for (channel, symbol), proven, overdue in self.planner.proofs(self._clock.monotonic_s()):
            newest = overdue or proven
            if newest is not None:
                proofs.append(
                    {
                        "channel": channel,
                        "symbol": symbol,
                        "newest_id": newest.id,
                        "asked_us": newest.asked_us,
                        "proven": overdue is None,
                    }
                )
        self._proofs = proofs
        self._reader.show()

    async def _record(self) -> None:
        """Store what became of gaps since the last look; what cannot be stored now is found again at the next."""
        for table, look in self._looks.items():
            try:
                await asyncio.to_thread(self._recorder.record, table, look)
            except (WorldMoved, CatalogUnavailable, OperatorNeeded) as error:
                # A history that cannot be kept is said, and keeps nobody from filling gaps.
                self._trouble["history"] = str(error)
                _log.warning("gaps_not_recorded", reason=str(error))
            else:
                self._trouble.pop("history", None)

    async def _keep_tidying(self) -> None:
        while True:
            await asyncio.sleep(self._tidy_interval_s)
            try:
                trouble = await asyncio.to_thread(self._recorder.tidy)
                self._trouble["tidy"] = trouble or ""
            except (TryAgain, OperatorNeeded) as error:
                self._trouble["tidy"] = f"upkeep of the gaps table: {error}"
                _log.warning("gaps_not_tidied", reason=str(error))

    # --- fill

    async def _keep_filling(self) -> None:
        pause = _Pause()
        while True:
            await self._give_up(self.planner.give_ups())
            pages = self.planner.next(self._clock.monotonic_s(), self._settings.concurrency)
            if not pages:
                self._looked.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._looked.wait(), self._settings.interval_s)
                continue
            answers = await asyncio.gather(*(self._fetch(page) for page in pages))
            done = [(page, found) for page, found in zip(pages, answers, strict=True) if found is not None]
            if done:
                await self._produce(done)
            if len(done) < len(pages):
                await pause.wait()
            else:
                pause.end()

    async def _fetch(self, page: Page) -> RestPage | None:
        channel, symbol = page.stream
        try:
            body = await self._reader.ask(self._rest.page(channel, symbol, page.first, page.rows))
            found = self._rest.read_page(channel, symbol, body, self._clock.now_us())
        except (ExchangeUnavailable, BadFrame) as error:
            self._trouble["exchange"] = str(error)
            _log.warning("page_not_fetched", channel=channel, symbol=symbol, first=page.first, reason=str(error))
            self.planner.failed(page)
            return None
        self._trouble.pop("exchange", None)
        self._pages += 1
        return found

    async def _produce(self, done: Sequence[tuple[Page, RestPage]]) -> None:
        """Put rows and seals into the log, wait until it has them, and tell the planner up to where."""
        items: list[Item] = []
        seals: list[GiveUp] = []
        for page, found in done:
            keep, given_up = self.planner.answered(page, _answer(found), self._clock.monotonic_s())
            if found.rows is not None and keep.any():
                rows = found.rows if keep.all() else found.rows.filter(pa.array(keep))
                items.append(Rows(page.stream, rows))
            items += [Letter(page.stream, frame) for _, frame in found.dead]
            seals += given_up
        self._show()
        offsets = await self._delivery.deliver([*items, *map(self._seal, seals)])
        now_s = self._clock.monotonic_s()
        for page, _ in done:
            self.planner.produced(page, offsets.get(page.stream), now_s)
        produced = sum(item.rows.num_rows for item in items if isinstance(item, Rows))
        self._rows += produced
        metrics.BACKFILL_ROWS.labels(self._exchange).inc(produced)

    async def _give_up(self, seals: Sequence[GiveUp]) -> None:
        if seals:
            offsets = await self._delivery.deliver(list(map(self._seal, seals)))
            self.planner.sealed(seals, offsets, self._clock.monotonic_s())

    def _seal(self, seal: GiveUp) -> SealRecord:
        channel, symbol = seal.stream
        table = model.CHANNELS[channel].table
        key = (table, self._exchange, symbol, seal.space)
        self._recorder.give_reason(key, (seal.first, seal.last), seal.reason)
        self._sealed_ids += seal.last - seal.first + 1
        _log.warning(
            "ids_given_up", symbol=symbol, space=seal.space, first=seal.first, last=seal.last, reason=seal.reason
        )
        return SealRecord(seal.stream, Seal(self._exchange, symbol, seal.space, seal.first - 1, seal.last, seal.reason))

    # --- at the start

    async def _learn(self) -> None:
        """Ask what live rows say too: the symbols' currencies. Rows are not fetched before that is known."""
        pause = _Pause()
        while True:
            try:
                known = await ask_about(self._reader, self._adapter, self._chosen.symbols)
            except ExchangeUnavailable as error:
                self._trouble["exchange"] = str(error)
                await pause.wait()
            else:
                self._trouble.pop("exchange", None)
                self._rest.learn(known)
                self._symbols = tuple(symbol for symbol in self._chosen.symbols if symbol in known)
                return


def _answer(found: RestPage) -> Answer:
    dead = [row_id for row_id, _ in found.dead]
    if found.rows is None:
        empty: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        return Answer(empty, empty, empty, found.void, dead)
    starts, ids, times = (
        found.rows.column(name).cast(pa.int64()).to_numpy()
        for name in (model.SEQUENCE_FROM, "source_sequence", "timestamp")
    )
    return Answer(starts, ids, times, found.void, dead)
