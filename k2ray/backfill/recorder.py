"""Keep the gaps table up to date with looks at the ledger. Blocking."""

from __future__ import annotations

from collections import deque

from pyiceberg.catalog import Catalog

from k2ray import metrics
from k2ray.backfill.committed import TableLook
from k2ray.backfill.gaps_table import GapsTable
from k2ray.backfill.history import SpaceKey, advance
from k2ray.backfill.spans import Span, intersect
from k2ray.clock import Clock
from k2ray.errors import K2rayError
from k2ray.lake.upkeep import TableUpkeep
from k2ray.layout import DataDir
from k2ray.model import GAPS
from k2ray.settings import Settings

REASONS_KEPT = 10_000

_KINDS = {"open": "opened", "filled": "filled", "lost": "lost"}


class GapRecorder:
    """Records what became of one exchange's gaps.

    Args:
        table: The gaps table.
        upkeep: Keeps it small.
        exchange: Whose gaps.
        clock: For when they were found.
    """

    def __init__(self, table: GapsTable, upkeep: TableUpkeep, exchange: str, clock: Clock) -> None:
        self._table = table
        self._upkeep = upkeep
        self._exchange = exchange
        self._clock = clock
        self._recorded: dict[str, int] = {}
        self._reasons: deque[tuple[SpaceKey, Span, str]] = deque(maxlen=REASONS_KEPT)

    def give_reason(self, key: SpaceKey, span: Span, reason: str) -> None:
        """Remember why ids are being sealed, for the event to come."""
        self._reasons.append((key, span, reason))

    def record(self, table: str, look: TableLook) -> None:
        """Store what became of gaps since the last look; once for each snapshot.

        Raises:
            WorldMoved, CatalogUnavailable: Nothing was stored, or that is unknown; call again with the next look.
            OperatorNeeded: The table's state cannot be read; a person must look.
        """
        if look.snapshot_id is None or self._recorded.get(table) == look.snapshot_id:
            return
        now_us = self._clock.now_us()
        try:
            before = self._table.history()
            after, events = advance(before, table, self._exchange, look.gaps, look.snapshot_id, now_us, self._why_lost)
            if events:
                self._table.append(events, after)
        except K2rayError:
            self._table.forget()
            raise
        self._recorded[table] = look.snapshot_id
        for event in events:
            metrics.GAP_EVENTS.labels(self._exchange, _KINDS[event.state]).inc()

    def tidy(self) -> str | None:
        """Look after the gaps table once, as an upkeep actor does after the others: compact, expire, sweep.

        May run beside `record`, in another thread. Where several exchanges' backfills do it at once, one's commit wins.

        Returns:
            What a person should know, None if there is nothing.

        Raises:
            CatalogUnavailable: Call again later.
            OperatorNeeded: The table carries no progress key.
        """
        self._upkeep.step()
        return self._upkeep.trouble

    def _why_lost(self, key: SpaceKey, span: Span) -> str:
        for known, ids, reason in list(self._reasons):
            if known == key and intersect([ids], [span]):
                return reason
        return "sealed"


def gap_recorder(catalog: Catalog, settings: Settings, layout: DataDir, exchange: str, clock: Clock) -> GapRecorder:
    """Return the recorder of an exchange's gaps.

    Args:
        catalog: Opened with `open_catalog`.
        settings: All settings.
        layout: Where the default warehouse is.
        exchange: Whose gaps.
        clock: Time.
    """
    upkeep = TableUpkeep(settings, layout, GAPS, clock=clock, catalog=catalog)
    return GapRecorder(GapsTable(catalog, settings), upkeep, exchange, clock)
