"""Real recorded Binance frames go the whole way, and every field of every aggTrade and quote is in the answer."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.recordings import recording
from tests.support.sim import start_sim
from tests.support.system import System, a_system

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def recorded(stream: str) -> list[dict[str, Any]]:
    """Return the data of the recorded frames of one stream."""
    with gzip.open(recording("binance"), "rt") as lines:
        frames = [json.loads(json.loads(line)["frame"]) for line in lines]
    return [frame["data"] for frame in frames if frame.get("stream", "").endswith(f"@{stream}")]


def milliseconds(text: str) -> int:
    """Return an answer's time as Binance writes it."""
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(milliseconds=1)


def agg_trade(row: dict[str, Any]) -> dict[str, Any]:
    """Return the frame that a row of the answer was made of."""
    vendor = dict(row["vendor_data"] or {})
    first = int(vendor.pop("f"))
    trade_ms = milliseconds(row["timestamp"])
    frame = {
        "e": "aggTrade",
        "E": int(vendor.pop("E", trade_ms)),
        "s": row["symbol"],
        "a": int(row["trade_id"]),
        "p": Decimal(row["price"]),
        "q": Decimal(row["quantity"]),
        "f": first,
        "l": int(vendor.pop("l", first)),
        "T": trade_ms,
        "m": {"SELL": True, "BUY": False}[row["side"]],
        "M": vendor.pop("M", "true") == "true",
    }
    assert not vendor
    assert row["source_sequence"] == frame["a"]
    return frame


def quote(row: dict[str, Any]) -> dict[str, Any]:
    """Return the frame that a row of the answer was made of."""
    assert row["source_sequence"] == int(row["quote_id"])
    assert row["timestamp"] == row["ingestion_timestamp"]
    sides = {"b": "bid_price", "B": "bid_quantity", "a": "ask_price", "A": "ask_quantity"}
    prices = {name: Decimal(row[column]) for name, column in sides.items()}
    return {"u": int(row["quote_id"]), "s": row["symbol"], **prices}


def exact(frame: dict[str, Any]) -> dict[str, Any]:
    """Return a frame with its decimal texts as decimals."""
    return {
        key: Decimal(value) if key in "pqbBaA" and isinstance(value, str) else value for key, value in frame.items()
    }


def by_id(frames: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return sorted(frames, key=lambda frame: (frame["s"], frame[key]))


def answered(system: System, path: str, **parameters: Any) -> list[dict[str, Any]]:
    answer = system.get(path, exchange="binance", limit=10_000, **parameters)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows


def test_every_field_of_recorded_frames_is_in_the_answer(tmp_path: Path, free_port: Callable[[], int]) -> None:
    trades, quotes = recorded("aggTrade"), recorded("bookTicker")
    symbols = sorted({frame["s"] for frame in trades + quotes})
    (tmp_path / "sim").mkdir()
    with start_sim(tmp_path / "sim", replay=recording("binance"), arguments=("--speed", "0")) as sim:
        exchange = {"ws_url": sim.ws_url, "rest_url": sim.rest_url, "symbols": symbols}
        sections = {"exchanges": {"binance": {**exchange, "channels": ["agg_trades", "quotes"]}}}
        with a_system(tmp_path / "system", sim, free_port(), **sections) as system:
            up = system.run("up")
            assert up.status == 0, up.err + up.out
            eventually(
                lambda: (
                    len(answered(system, "/v1/quotes")) >= len(quotes)
                    and len(answered(system, "/v1/trades", space="agg")) >= len(trades)
                ),
                "all recorded rows are in the answers",
                timeout_s=60,
            )
            stored_trades = [agg_trade(row) for row in answered(system, "/v1/trades", space="agg")]
            stored_quotes = [quote(row) for row in answered(system, "/v1/quotes")]
            gaps = system.status()["gaps"]
    assert by_id(stored_trades, "a") == by_id([exact(frame) for frame in trades], "a")
    assert by_id(stored_quotes, "u") == by_id([exact(frame) for frame in quotes], "u")
    assert gaps == []
