"""The numbers that the ledger's decisions depend on; they travel in its file, and its readers adopt them."""

from __future__ import annotations

from dataclasses import dataclass

SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US

CLOCK_STEP_US = 3 * HOUR_US
"""The furthest that an exchange's clock is thought to step back where the times of known rows do not say so."""


@dataclass(frozen=True)
class LedgerParams:
    """How a table's ledger decides.

    Attributes:
        proves_gaps: Ids step by one, so a hole between intervals is a gap. Otherwise (quotes) holes prove nothing.
        tolerance_us: How far event times of neighbouring ids may be out of order, and how far the times of one row may
            differ between two connections.
        step_us: Neighbouring ids so far apart in time are remembered: an unseen restart may lie between them.
        slack_ids: Ids may run ahead of their neighbours by so many at once; also the widest range that one row covers.
        ids_per_s: And by so many more a second of event time. What is further ahead is absurd (a poisoned id): it never
            enters the space, so it can open no absurd gap there.
        hole_age_us: Where holes prove nothing, one is joined when its upper edge is older than this against the newest
            event time: the longest that a spool holds rows back.
        established_rows: A restarted space with so many rows is believed: only then does it end the space before it.
        openings_per_hour: New spaces of an instrument within an hour of event time.
        spaces_kept: New spaces of an instrument at all.
        intervals_kept: Past this many in one space the lowest hole is given up.
        strays_kept: Rows remembered by id and time that no space took while none could be opened.
        recent_kept: Rows without a sequence remembered by their trade_id or quote_id, per instrument.
    """

    proves_gaps: bool = True
    tolerance_us: int = 2 * SECOND_US
    step_us: int = 60 * SECOND_US
    slack_ids: int = 1_000_000
    ids_per_s: int = 250_000
    hole_age_us: int = 24 * HOUR_US
    established_rows: int = 8
    openings_per_hour: int = 4
    spaces_kept: int = 64
    intervals_kept: int = 10_000
    strays_kept: int = 1_000
    recent_kept: int = 1_000

    @classmethod
    def for_table(cls, table: str) -> LedgerParams:
        """Return the parameters of a new table's ledger.

        Quotes without a time of their own carry the time at which our socket saw them, so that the same quote's times
        differ between two connections by as long as one of them may stall: their tolerance is a minute.

        Args:
            table: `trades` or `quotes`.
        """
        if table == "quotes":
            return cls(proves_gaps=False, tolerance_us=60 * SECOND_US, step_us=1_800 * SECOND_US)
        return cls()
