"""`k2ray gaps`: is everything there? First and last id of each instrument, what is missing, and what became of it.

Read from the table itself, so it answers while the system is down; what is on its way, and the newest ids that the
exchange named, come from a running system's API.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from k2ray.cli.console import out, say
from k2ray.cli.system import System
from k2ray.errors import TryAgain
from k2ray.lake.catalog import open_catalog
from k2ray.model import CHANNELS
from k2ray.query.completeness import known_of, parse_completeness, to_json
from k2ray.query.engine import QueryEngine
from k2ray.query.proof import Known

COMPLETE, MISSING, NOTHING = 0, 1, 2
STATUS_TIMEOUT_S = 3.0
PLAIN_WIDTH = 200
PIECES_SHOWN = 20

_COLOURS = {"open": "yellow", "filling": "cyan", "lost": "red", "unrecorded": "dim"}


def gaps(config: Path | None, *, as_json: bool, symbols: str | None) -> int:
    """Print what is complete and what is missing; returns the exit status: 0 complete, 1 not, 2 nothing recorded."""
    system = System.load(config)
    rows = look(system, symbols)
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


def look(system: System, symbols: str | None) -> list[dict[str, Any]]:
    """Return one entry a numbering, as `/v1/completeness` has them."""
    known = _known(system)
    engine = QueryEngine(open_catalog(system.settings, system.layout), system.settings, system.layout)
    recorded = {channel for exchange in system.settings.exchanges.enabled().values() for channel in exchange.channels}
    rows = []
    try:
        for channel in CHANNELS:
            if channel not in recorded:
                continue
            question = {"channel": channel} | ({} if symbols is None else {"symbols": symbols})
            try:
                verdicts, _ = engine.completeness.verdicts(parse_completeness(question), known)
            except TryAgain:
                continue  # a table that does not exist yet
            for verdict in verdicts:
                key = (verdict.numbering.exchange, channel, verdict.numbering.symbol)
                rows.append(to_json(verdict, channel, known.get(key, Known())))
    finally:
        engine.close()
    return rows


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
            str(row["first_id"] or ""),
            str(row["last_id"] or ""),
            str(proven["id"]),
            proven["time"] or "",
            f"{row['missing_ids']:,}",
            verdict,
        )
    return table


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
