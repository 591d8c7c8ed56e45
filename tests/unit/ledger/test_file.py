"""The ledger's file round-trips exactly, and refuses what it does not know."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from k2ray.errors import OperatorNeeded
from k2ray.ledger import Ledger, LedgerParams, LedgerPosition, decode_ledger, encode_ledger
from k2ray.ledger.file import PARAMS_KEY, SCHEMA, VERSION_KEY
from tests.support.market_log import PARTITION, market_log, run

POSITIONS = {PARTITION: LedgerPosition("topic-a", 17), ("other", 3): LedgerPosition("topic-b", 0)}


@pytest.mark.parametrize("seed", range(6))
def test_ledger_round_trips_exactly(seed: int) -> None:
    rows, params = market_log(seed, "trades")
    ledger = run(rows, params, seed).ledger
    data = encode_ledger(ledger, POSITIONS)
    again, positions = decode_ledger(data)
    assert positions == POSITIONS
    assert again.params == params
    assert encode_ledger(again, positions) == data
    assert (again.gaps(), again.summary()) == (ledger.gaps(), ledger.summary())


def test_empty_ledger_round_trips() -> None:
    data = encode_ledger(Ledger(LedgerParams.for_table("quotes")), {})
    ledger, positions = decode_ledger(data)
    assert (positions, ledger.params.proves_gaps) == ({}, False)
    assert ledger.summary().instruments == 0


def rewritten(data: bytes, key: bytes, value: bytes) -> bytes:
    with pa.ipc.open_file(pa.BufferReader(data)) as reader:
        table = reader.read_all()
    sink = pa.BufferOutputStream()
    schema = table.schema.with_metadata({**table.schema.metadata, key: value})
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table.cast(schema))
    return bytes(sink.getvalue())


def test_unknown_version_parameters_and_rubbish_are_refused() -> None:
    data = encode_ledger(Ledger(), {})
    with pytest.raises(OperatorNeeded, match="version 99"):
        decode_ledger(rewritten(data, VERSION_KEY, b"99"))
    with pytest.raises(OperatorNeeded, match="novelty"):
        decode_ledger(rewritten(data, PARAMS_KEY, json.dumps({"novelty": 1}).encode()))
    for rubbish in (b"", b"not arrow", data[: len(data) // 2]):
        with pytest.raises(OperatorNeeded, match="ledger file"):
            decode_ledger(rubbish)


def test_every_column_is_documented() -> None:
    import k2ray.ledger.file as module

    assert module.__doc__ is not None
    documented = {
        name.strip()
        for line in module.__doc__.splitlines()
        if line.startswith("| ")
        for name in line.split("|")[1].split(",")
    }
    assert set(SCHEMA.names) <= documented
