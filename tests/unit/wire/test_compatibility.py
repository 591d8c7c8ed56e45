"""Which schemas may follow which under a subject."""

from __future__ import annotations

import json
from typing import Any

import pytest

from k2ray.errors import BadInput, IncompatibleSchema, UnreadableSchema
from k2ray.wire.avro_schema import SCHEMAS
from k2ray.wire.compatibility import canonical, problems, refusals
from k2ray.wire.framing import subject_of
from k2ray.wire.registry import check_compatible, check_subject
from tests.support.schemas import changed

OURS = SCHEMAS["trades"]


@pytest.mark.parametrize("table", ["trades", "quotes"])
def test_our_schemas_can_follow_themselves(table: str) -> None:
    assert problems(SCHEMAS[table], SCHEMAS[table]) == []


@pytest.mark.parametrize(
    "newer",
    [
        changed("trades", add="venue"),
        changed("trades", drop="side"),
        changed("trades", replace={"origin": ["null", "string"]}),
        changed("trades", replace={"origin": "bytes"}),
    ],
    ids=["a field with a default", "a field less", "null allowed", "promoted"],
)
def test_a_schema_that_reads_old_records_is_backward_compatible(newer: str) -> None:
    assert problems(newer, OURS) == []


@pytest.mark.parametrize(
    ("newer", "why"),
    [
        (changed("trades", add="venue", default=False), "reader_field_missing_default_value"),
        (changed("trades", replace={"source_sequence": "long"}), "type_mismatch|missing_union_branch"),
        (changed("trades", replace={"timestamp": "string"}), "type_mismatch"),
        (changed("trades", replace={"timestamp": "long"}), "timestamp is a plain value, and was timestamp-micros"),
        (changed("trades", scale=8), "price is a decimal of scale 8, and was a decimal of scale 18"),
        (SCHEMAS["quotes"], "name_mismatch"),
    ],
    ids=["no default", "null forbidden", "other type", "lost meaning", "other scale", "other record"],
)
def test_a_schema_that_cannot_read_old_records_is_refused(newer: str, why: str) -> None:
    with pytest.raises(IncompatibleSchema, match=why):
        check_compatible("t-value", newer, [OURS], "BACKWARD")


def test_backward_looks_at_the_newest_and_transitive_at_all() -> None:
    without = changed("trades", drop="side")
    old = [OURS, without]
    assert refusals(changed("trades", drop="side", add="venue"), old, "BACKWARD_TRANSITIVE") == []
    assert refusals(OURS, old, "BACKWARD") != []
    # `side` came back with another type and a default: fine after `without`, not after the first.
    back = changed("trades", drop="side", add="side", kind="long")
    assert refusals(back, old, "BACKWARD") == []
    assert refusals(back, old, "BACKWARD_TRANSITIVE") != []


@pytest.mark.parametrize("text", ["", "{}", "null", '{"type": "record"}', '{"type":"record","name":"r","fields":3}'])
def test_what_is_no_schema_is_unreadable(text: str) -> None:
    with pytest.raises(UnreadableSchema):
        canonical(text)


def test_the_same_schema_is_the_same_text_whoever_wrote_it() -> None:
    parsed: dict[str, Any] = json.loads(OURS)
    turned = json.dumps(dict(reversed(parsed.items())), indent=3)
    assert canonical(turned) == canonical(OURS)


@pytest.mark.parametrize("subject", ["", "-value", "market.crypto.trades.binance", "Trade", "t-key"])
def test_one_subject_was_looked_up_and_another_one_registered(subject: str) -> None:
    """Trap 15: serializers looked up one subject and registered another, so compatibility rules never applied."""
    with pytest.raises(BadInput, match="is not the subject"):
        check_subject(subject)
    check_subject(subject_of("market.crypto.trades.binance"))
