"""What became of gaps: rows of the gaps table, the newest first. It is small, so it is read as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.table import Table

from k2ray.errors import BadRequest, CatalogUnavailable
from k2ray.lake.durable import AWAY
from k2ray.model import GAPS, TIMESTAMP
from k2ray.query.request import Selection, parse_limit, parse_selection, refuse_unknown

GAP_PARAMETERS = ("exchange", "symbols", "state", "start", "end", "limit")
STATES = ("open", "filled", "lost")

GAP_ROWS = pa.schema(
    [
        pa.field("exchange", pa.string(), nullable=False),
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("table", pa.string(), nullable=False),
        pa.field("sequence_space", pa.string(), nullable=False),
        pa.field("first_id", pa.int64(), nullable=False),
        pa.field("last_id", pa.int64(), nullable=False),
        pa.field("missing", pa.int64(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("opened_at", TIMESTAMP, nullable=False),
        pa.field("closed_at", TIMESTAMP),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("snapshot_id", pa.string(), nullable=False),
    ]
)
"""The columns of an answer."""


@dataclass(frozen=True)
class GapsRequest:
    """A validated question; the range of time is that of `opened_at`."""

    selection: Selection
    state: str | None
    limit: int


def parse_gaps(parameters: Mapping[str, str]) -> GapsRequest:
    """Validate a question.

    Args:
        parameters: Name -> text, as in a URL; see `GAP_PARAMETERS`.

    Raises:
        BadRequest: A parameter is unknown or wrong; tell the client.
    """
    refuse_unknown(parameters, GAP_PARAMETERS)
    state = parameters.get("state")
    if state is not None and state not in STATES:
        raise BadRequest("state", f"{state!r} is not a state; allowed: {', '.join(STATES)}")
    return GapsRequest(parse_selection(GAPS, parameters), state, parse_limit(parameters))


def read_gaps(table: Table, request: GapsRequest) -> pa.Table:
    """Return the rows asked for, the newest first.

    Raises:
        CatalogUnavailable: The storage does not answer.
    """
    try:
        rows = table.scan().to_arrow().select(GAP_ROWS.names).cast(GAP_ROWS)
    except AWAY as error:
        raise CatalogUnavailable(f"cannot read the gaps table: {error}") from error
    chosen, opened = request.selection, pc.cast(rows["opened_at"], pa.int64())
    keep = pa.array([True] * len(rows), pa.bool_())
    if chosen.exchange is not None:
        keep = pc.and_(keep, pc.equal(rows["exchange"], chosen.exchange))
    if chosen.symbols:
        keep = pc.and_(keep, pc.is_in(rows["symbol"], pa.array(chosen.symbols)))
    if request.state is not None:
        keep = pc.and_(keep, pc.equal(rows["state"], request.state))
    if chosen.start_us is not None:
        keep = pc.and_(keep, pc.greater_equal(opened, chosen.start_us))
    if chosen.end_us is not None:
        keep = pc.and_(keep, pc.less(opened, chosen.end_us))
    newest_first = [("opened_at", "descending"), ("closed_at", "descending"), ("first_id", "ascending")]
    return rows.filter(keep).sort_by(newest_first).slice(0, request.limit)
