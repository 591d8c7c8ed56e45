"""`k2ray gaps`: is everything there? First and last id of each instrument, what is missing, and what became of it.

Read from the table itself, so it answers while the system is down; what is on its way, and the newest ids that the
exchange named, come from a running system's API.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from k2ray.cli.console import out, say
from k2ray.cli.system import System
from k2ray.errors import BadRequest, CatalogUnavailable, TryAgain
from k2ray.lake.catalog import load_table, open_catalog
from k2ray.model import CHANNELS
from k2ray.query.completeness import CompletenessRequest, known_of, parse_completeness, to_json
from k2ray.query.engine import QueryEngine
from k2ray.query.proof import Known, Verdict

COMPLETE, MISSING, NOTHING = 0, 1, 2
STATUS_TIMEOUT_S = 3.0
PLAIN_WIDTH = 200
PIECES_SHOWN = 20
READ_ATTEMPTS = 5
READ_PAUSE_S = 0.2
"""A snapshot that expires while it is read, or a table whose first one is under way, is there at the next attempt."""

_COLOURS = {"open": "yellow", "filling": "cyan", "lost": "red", "unrecorded": "dim"}


def gaps(config: Path | None, *, as_json: bool, question: Mapping[str, str | None]) -> int:
    """Print what is complete and what is missing; returns the exit status: 0 complete, 1 not, 2 nothing recorded.

    Args:
        config: Settings file.
        as_json: Print what the API answers instead of tables.
        question: As `look` takes it.
    """
    system = System.load(config)
    rows = look(system, {name: text for name, text in question.items() if text is not None})
    if as_json:
        out.print(json.dumps(rows), markup=False)
    elif not rows:
        say("nothing is recorded yet")
    else:
        console = out if out.is_terminal else Console(width=PLAIN_WIDTH, highlight=False)
        console.print(_instruments(rows))
        if any(row["missing"] for row in rows):
            console.print(_pieces(rows))
    if not rows:
        return NOTHING
    return MISSING if any(row["complete"] is False for row in rows) else COMPLETE


def look(system: System, question: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one entry a numbering, as `/v1/completeness` has them.

    Args:
        system: Whose tables.
        question: Its parameters, as text; without a channel all recorded ones are looked at.

    Raises:
        BadRequest: A parameter is wrong, or nothing that was asked for is recorded in any channel.
        CatalogUnavailable: The catalog or the storage does not answer: nothing is known.
    """
    recorded = {channel for exchange in system.settings.exchanges.enabled().values() for channel in exchange.channels}
    channels = [question["channel"]] if "channel" in question else [name for name in CHANNELS if name in recorded]
    requests = [parse_completeness({**question, "channel": channel}) for channel in channels]
    known = _known(system)
    catalog = open_catalog(system.settings, system.layout)
    engine = QueryEngine(catalog, system.settings, system.layout)
    rows: list[dict[str, Any]] = []
    strangers: BadRequest | None = None
    try:
        for request in requests:
            if load_table(catalog, system.settings, request.channel.table) is None:
                continue
            try:
                verdicts = _verdicts(engine, request, known)
            except BadRequest as error:
                strangers = error  # a symbol may have trades and no quotes
                continue
            for verdict in verdicts:
                key = (verdict.numbering.exchange, request.channel.name, verdict.numbering.symbol)
                rows.append(to_json(verdict, request.channel.name, known.get(key, Known())))
    finally:
        engine.close()
    if strangers is not None and not rows:
        raise strangers
    return rows


def _verdicts(
    engine: QueryEngine, request: CompletenessRequest, known: Mapping[tuple[str, str, str], Known]
) -> list[Verdict]:
    for attempt in range(READ_ATTEMPTS):
        try:
            return engine.completeness.verdicts(request, known)[0]
        except CatalogUnavailable:
            raise
        except TryAgain:
            if attempt == READ_ATTEMPTS - 1:
                raise
            time.sleep(READ_PAUSE_S)
    raise AssertionError("unreachable")


def _known(system: System) -> dict[tuple[str, str, str], Known]:
    try:
        answer = httpx.get(f"{system.api_url}/v1/status", timeout=STATUS_TIMEOUT_S)
        return known_of(answer.json()) if answer.status_code == httpx.codes.OK else {}
    except (httpx.HTTPError, ValueError):
        return {}


def _instruments(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("instrument", "channel", "space", "first id", "last id", "proven to", "at", "missing", "complete"):
        table.add_column(column, justify="right" if column in {"first id", "last id", "missing"} else "left")
    for row in rows:
        proven = row["proven_to"] or {"id": "", "time": ""}
        verdict = {None: Text("unproven", style="dim"), True: Text("yes", style="green")}.get(
            row["complete"], Text("no: " + "; ".join(row["reasons"]), style="yellow")
        )
        table.add_row(
            f"{row['exchange']} {row['symbol']}",
            row["channel"],
            row["sequence_space"],
            _shown(row["first_id"]),
            _shown(row["last_id"]),
            str(proven["id"]),
            proven["time"] or "",
            f"{row['missing_ids']:,}",
            verdict,
        )
    return table


def _shown(number: int | None) -> str:
    return "" if number is None else str(number)  # the first id of a numbering may be 0


def _pieces(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, title="missing", title_justify="left")
    for column in ("instrument", "space", "first id", "last id", "ids", "state", "since", "until"):
        table.add_column(column)
    pieces = [(row, piece) for row in rows for piece in row["missing"]]
    for row, piece in pieces[:PIECES_SHOWN]:
        table.add_row(
            f"{row['exchange']} {row['symbol']}",
            row["sequence_space"],
            str(piece["first_id"]),
            str(piece["last_id"]),
            f"{piece['ids']:,}",
            Text(piece["state"], style=_COLOURS[piece["state"]]),
            piece["since"] or "",
            piece["until"] or "",
        )
    if len(pieces) > PIECES_SHOWN:
        table.caption = f"and {len(pieces) - PIECES_SHOWN:,} more: --json has all"
    return table
