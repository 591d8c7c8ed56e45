"""`GET /v1/completeness` and `k2ray gaps`: is everything there? Answered by ids, from the newest snapshot's ledger.

Next in the flow: `proof.py` judges each numbering.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from k2ray.backfill.spans import Span
from k2ray.errors import BadRequest, TryAgain
from k2ray.lake.ledger_file import load_ledger_beside_writer
from k2ray.lake.progress import committed_progress
from k2ray.ledger import Gap, Ledger
from k2ray.ledger.spaces import space_name
from k2ray.model import CHANNELS, Channel
from k2ray.query.database import Database
from k2ray.query.files import Pinned, Snapshots
from k2ray.query.plan import Slice, prune
from k2ray.query.proof import Asked, Known, Missing, Numbering, Verdict, assess, ids_missing, unproven
from k2ray.query.request import Selection, parse_selection, refuse_unknown
from k2ray.query.scan import fetch_source, source_sql, where_sql

PARAMETERS = ("exchange", "symbols", "channel", "start", "end", "first_id", "last_id")
FILES_AT_ONCE = 500
MISSING_SHOWN = 10_000

_ID = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class CompletenessRequest:
    """A validated question.

    Attributes:
        channel: Whose ids.
        selection: Exchange, symbols, and the range of time if there is one.
        first_id, last_id: The range of ids, both inclusive; None: no bound.
    """

    channel: Channel
    selection: Selection
    first_id: int | None
    last_id: int | None


@dataclass(frozen=True)
class _Read:
    """A ledger as plain values, which threads may share."""

    snapshot_id: int | None
    numberings: tuple[Numbering, ...]
    tolerance_us: int


def parse_completeness(parameters: Mapping[str, str]) -> CompletenessRequest:
    """Validate a question.

    Args:
        parameters: Name -> text, as in a URL; see `PARAMETERS`.

    Raises:
        BadRequest: A parameter is unknown or wrong, or the range is given twice; tell the client.
    """
    refuse_unknown(parameters, PARAMETERS)
    name = parameters.get("channel", "trades")
    if name not in CHANNELS:
        raise BadRequest("channel", f"{name!r} is not a channel; allowed: {', '.join(CHANNELS)}")
    channel = CHANNELS[name]
    first, last = _id("first_id", parameters), _id("last_id", parameters)
    if first is not None and last is not None and last < first:
        raise BadRequest("last_id", "lies below first_id; allowed: last_id at or above first_id, both inclusive")
    if {"start", "end"} & set(parameters) and {"first_id", "last_id"} & set(parameters):
        raise BadRequest("first_id", "a range of ids and a range of time; allowed: one of them")
    given = {key: text for key, text in parameters.items() if key in _SELECTING}
    selection = parse_selection(channel.table, {**given, "space": channel.space})
    return CompletenessRequest(channel, selection, first, last)


_SELECTING = {"exchange", "symbols", "start", "end"}


def _id(name: str, parameters: Mapping[str, str]) -> int | None:
    text = parameters.get(name)
    if text is not None and not _ID.fullmatch(text):
        raise BadRequest(name, f"{text!r} is not an id; allowed: a whole number from 0 on")
    return None if text is None else int(text)


class Completeness:
    """Answers the question. Blocking; safe to use from several threads.

    Args:
        snapshots: Of the tables.
        database: For the ids at the edges of a range of time.
    """

    def __init__(self, snapshots: Snapshots, database: Database) -> None:
        self._snapshots = snapshots
        self._database = database
        self._lock = threading.Lock()
        self._read: dict[str, _Read] = {}

    def verdicts(
        self, request: CompletenessRequest, known: Mapping[tuple[str, str, str], Known]
    ) -> tuple[list[Verdict], int | None]:
        """Return one verdict a numbering, by exchange and symbol, and the snapshot's id.

        Args:
            request: The question.
            known: (exchange, channel, symbol) -> what the backfill knows.

        Raises:
            BadRequest: Status 404: an exchange or symbol that was asked for is not in the table.
            TryAgain: Catalog or storage do not answer, or the table does not exist yet.
        """
        channel, selection = request.channel, request.selection
        read = self._ledger(channel.table)
        chosen = [
            numbering
            for numbering in read.numberings
            if numbering.space.partition("#")[0] == channel.space
            and selection.exchange in (None, numbering.exchange)
            and (not selection.symbols or numbering.symbol in selection.symbols)
        ]
        _refuse_strangers(request, chosen)
        edges = self._edges(request) if selection.start_us is not None or selection.end_us is not None else {}
        found = []
        for numbering in chosen:
            asked = Asked(
                request.first_id,
                request.last_id,
                selection.start_us,
                selection.end_us,
                edges.get((numbering.exchange, numbering.symbol, numbering.space)),
            )
            if not channel.proves_gaps:
                found.append(unproven(numbering, asked))
                continue
            more = known.get((numbering.exchange, channel.name, numbering.symbol), Known())
            found.append(assess(numbering, asked, more, read.tolerance_us))
        return found, read.snapshot_id

    def _ledger(self, table_name: str) -> _Read:
        table = self._snapshots.head(table_name)
        progress = committed_progress(table.metadata)
        if progress is None:
            raise TryAgain(f"the table {table_name} has no progress key")
        with self._lock:
            held = self._read.get(table_name)
            if held is None or held.snapshot_id != progress.snapshot_id:
                ledger = load_ledger_beside_writer(table, progress, table_name, self._snapshots.head)
                held = self._read[table_name] = _Read(
                    progress.snapshot_id, tuple(numberings(ledger)), ledger.params.tolerance_us
                )
            return held

    def _edges(self, request: CompletenessRequest) -> dict[tuple[str, str, str], Span]:
        """Return the lowest and highest id of each numbering in a range of time."""
        selection = request.selection
        pinned: Pinned = self._snapshots.pin(selection.table)
        paths = sorted(prune(self._snapshots.files(pinned, selection), selection).paths)
        found: dict[tuple[str, str, str], Span] = {}
        for place in range(0, len(paths), FILES_AT_ONCE):
            part = Slice(tuple(paths[place : place + FILES_AT_ONCE]), None, None)
            conditions, values = where_sql(selection, part)
            statement = f"""
                SELECT exchange, symbol, sequence_space, min(source_sequence) AS first, max(source_sequence) AS last
                FROM {source_sql()} WHERE {" AND ".join([*conditions, "source_sequence IS NOT NULL"])}
                GROUP BY ALL
            """
            for row in fetch_source(self._database, pinned, statement, values, part).to_pylist():
                key = (row["exchange"], row["symbol"], row["sequence_space"])
                low, high = found.get(key, (row["first"], row["last"]))
                found[key] = (min(low, row["first"]), max(high, row["last"]))
        return found


def numberings(ledger: Ledger) -> list[Numbering]:
    """Return a ledger's numberings with their gaps."""
    gaps: dict[tuple[str, str, str], list[Gap]] = {}
    for gap in ledger.gaps():
        gaps.setdefault((gap.exchange, gap.symbol, gap.sequence_space), []).append(gap)
    found = []
    for instrument in ledger.instruments():
        spaces = [space for space in instrument.spaces if len(space.intervals)]
        newest = max(spaces, key=lambda space: space.newest_us, default=None)
        for space in spaces:
            name = space_name(instrument.base, space.number)
            key, intervals = (instrument.exchange, instrument.symbol, name), space.intervals
            found.append(
                Numbering(
                    *key,
                    newest=space is newest,
                    first_id=intervals.lo[0] + 1,
                    first_us=intervals.first_us[0],
                    last_id=intervals.hi[-1],
                    last_us=intervals.last_us[-1],
                    gaps=tuple(gaps.get(key, ())),
                    given_up=space.given_up,
                )
            )
    return found


def known_of(status: Mapping[str, Any]) -> dict[tuple[str, str, str], Known]:
    """Return (exchange, channel, symbol) -> what the backfill actors know, from the supervisor's status."""
    found: dict[tuple[str, str, str], Known] = {}
    for actor in status.get("actors", ()):
        if actor.get("role") != "backfill":
            continue
        exchange, detail = actor["name"].split("#")[0].split(":")[1], actor.get("detail", {})
        filling: dict[tuple[str, str], list[Span]] = {}
        for channel, symbol, first, last in detail.get("filling", ()):
            filling.setdefault((channel, symbol), []).append((first, last))
        for proof in detail.get("proofs", ()):
            key = (proof["channel"], proof["symbol"])
            found[exchange, *key] = Known(proof["newest_id"], proof["asked_us"], tuple(filling.get(key, ())))
    return found


def to_json(verdict: Verdict, channel: str, known: Known) -> dict[str, Any]:
    """Return a verdict as plain values: ids as numbers, times as ISO-8601."""
    numbering = verdict.numbering
    return {
        "exchange": numbering.exchange,
        "symbol": numbering.symbol,
        "channel": channel,
        "sequence_space": numbering.space,
        "first_id": verdict.first_id,
        "last_id": verdict.last_id,
        "proof": "unproven" if verdict.complete is None else "ids",
        "complete": verdict.complete,
        "proven_to": None if verdict.proven_id is None else {"id": verdict.proven_id, "time": _iso(verdict.proven_us)},
        "newest": {"id": known.newest_id, "asked_at": _iso(known.asked_us)}
        if numbering.newest and known.newest_id is not None
        else None,
        "missing_ids": ids_missing(verdict.missing),
        "missing": [_missing(piece) for piece in verdict.missing[:MISSING_SHOWN]],
        "reasons": list(verdict.reasons),
    }


def _missing(piece: Missing) -> dict[str, Any]:
    return {
        "first_id": piece.first_id,
        "last_id": piece.last_id,
        "ids": piece.last_id - piece.first_id + 1,
        "state": piece.state,
        "since": _iso(piece.since_us),
        "until": _iso(piece.until_us),
    }


def _iso(time_us: int | None) -> str | None:
    if time_us is None:
        return None
    moment = datetime.fromtimestamp(time_us // 1_000_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_us % 1_000_000:06d}Z"


def _refuse_strangers(request: CompletenessRequest, chosen: Sequence[Numbering]) -> None:
    selection = request.selection
    if selection.exchange is not None and not any(one.exchange == selection.exchange for one in chosen):
        raise BadRequest("exchange", f"{selection.exchange!r} has no such {request.channel.name} in the table", 404)
    strangers = sorted(set(selection.symbols) - {one.symbol for one in chosen})
    if strangers:
        raise BadRequest("symbols", f"no {request.channel.name} of {', '.join(strangers)} in the table", 404)
