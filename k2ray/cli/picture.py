"""What `k2ray status` makes of the supervisor's picture: why a system is not healthy, a table for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

GAPS_SHOWN = 20

_COLUMNS = (
    ("actor", "left"),
    ("state", "left"),
    ("pid", "right"),
    ("restarts", "right"),
    ("rss MB", "right"),
    ("leak", "right"),
    ("rate/s", "right"),
    ("lag", "right"),
    ("data age s", "right"),
    ("connection", "left"),
    ("rotations", "right"),
    ("gaps", "right"),
    ("last reason", "left"),
)


def reasons_of(answer: dict[str, Any]) -> list[str]:
    """Return why a system is not healthy, one sentence a reason; takes what the supervisor's `status` returns."""
    reasons = [reason for actor in answer["actors"] for reason in _actor_reasons(actor)]
    reasons += unknown_symbols(answer["actors"])
    if answer["stopping"]:
        reasons.append("the system is being stopped")
    broker = answer["broker"]
    if broker is not None and not broker["alive"]:
        reasons.append(f"the local broker does not run: {broker['last_reason']}")
    return reasons


def unknown_symbols(actors: Iterable[dict[str, Any]]) -> list[str]:
    """Return a sentence an exchange about the symbols of the settings that it does not know."""
    unknown: dict[str, set[str]] = {}
    for actor in actors:
        if actor["role"] == "feed" and actor["detail"].get("unknown_symbols"):
            exchange = actor["name"].split(":")[1]
            unknown.setdefault(exchange, set()).update(actor["detail"]["unknown_symbols"])
    return [f"symbols unknown to {exchange}: {', '.join(sorted(of))}" for exchange, of in sorted(unknown.items())]


def _actor_reasons(actor: dict[str, Any]) -> Iterable[str]:
    name, detail = actor["name"], actor["detail"]
    if actor["state"] != "running":
        yield f"{name} is {actor['state']}: {actor['last_reason']}"
        return
    if actor["role"] == "feed" and not actor["ready"]:
        why = detail.get("last_close") or "no data yet"
        yield f"{name} records nothing, its connection is {detail.get('connection')}: {why}"
    if detail.get("trouble"):
        yield f"{name} is in trouble: {detail['trouble']}"


def draw(picture: dict[str, Any]) -> RenderableType:
    """Return the picture for a terminal."""
    table = Table(box=None, pad_edge=False)
    for column, side in _COLUMNS:
        table.add_column(column, justify="right" if side == "right" else "left", no_wrap=column != "last reason")
    for actor in picture["actors"]:
        table.add_row(*_cells(actor))
    verdict = "; ".join(picture["reasons"]) or "healthy"
    kafka, ray = (picture[part] or "does not run" for part in ("kafka", "ray"))
    head = f"api {picture['api']}   kafka {kafka}   ray {ray}   level {picture['level']}"
    head += f"   release {picture['release']}" if picture["release"] else ""
    parts: list[RenderableType] = [Text(head), Text(verdict, style="yellow" if picture["reasons"] else "green"), table]
    if picture["gaps"]:
        parts += [Text(f"{len(picture['gaps'])} open gaps", style="yellow"), _draw_gaps(picture["gaps"])]
    return Group(*parts)


def _cells(actor: dict[str, Any]) -> list[Text]:
    detail, memory = actor["detail"], actor["memory"] or {}
    colour = {"running": "green", "failed": "red"}.get(actor["state"], "yellow")
    rotations = detail.get("rotations")
    return [
        Text(actor["name"]),
        Text(actor["state"], style=colour),
        Text(_number(actor["pid"], grouped=False)),
        Text(_number(actor["restarts"])),
        Text(_number(actor["rss_bytes"], 1e-6)),
        # Before its window is full a score says nothing.
        Text(f"{memory['leak_score']:.2f}" if memory.get("complete") else ""),
        Text(_number(actor["rate"])),
        Text(_number(actor["lag_trades"])),
        Text("" if actor["data_age_s"] is None else f"{actor['data_age_s']:.1f}"),
        Text(_connection(actor)),
        Text("" if rotations is None else _number(sum(rotations.values()))),
        Text(_number(detail.get("open_gaps"))),
        Text(actor["last_reason"]),
    ]


def _connection(actor: dict[str, Any]) -> str:
    """Say how a feed is connected: `open 3.2 h`, `open 3.9 h, rotating`, `waiting`."""
    detail = actor["detail"]
    if actor["role"] != "feed" or "connection" not in detail:
        return ""
    words = str(detail["connection"])
    if detail.get("connected_s") is not None:
        words += f" {_span(detail['connected_s'])}"
    return words + (", rotating" if detail.get("rotating") else "")


def _span(seconds: float) -> str:
    for limit_s, unit_s, name in ((120, 1, "s"), (7200, 60, "min")):
        if seconds < limit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{seconds / 3600:.1f} h"


def _draw_gaps(gaps: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("instrument", "space", "first id", "last id", "ids"):
        table.add_column(column)
    for gap in gaps[:GAPS_SHOWN]:
        table.add_row(
            f"{gap['exchange']} {gap['symbol']}",
            gap["sequence_space"],
            str(gap["first_id"]),
            str(gap["last_id"]),
            f"{gap['last_id'] - gap['first_id'] + 1:,}",
        )
    return table


def _number(value: float | None, factor: float = 1.0, *, grouped: bool = True) -> str:
    if value is None:
        return ""
    return f"{value * factor:,.0f}" if grouped else f"{value * factor:.0f}"
