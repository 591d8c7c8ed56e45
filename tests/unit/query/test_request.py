"""A question is refused by name, or means exactly one thing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2ray.errors import BadRequest
from k2ray.query.request import (
    BAR_PARAMETERS,
    DEFAULT_LIMIT,
    MAX_LIMIT,
    ROW_PARAMETERS,
    parse_bars,
    parse_interval,
    parse_rows,
    parse_time,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def refused(field: str, **parameters: str) -> str:
    with pytest.raises(BadRequest) as caught:
        parse_rows("trades", parameters)
    assert caught.value.field == field
    assert caught.value.status == 400
    assert "allowed: " in caught.value.reason
    return caught.value.reason


def test_nothing_asked_means_the_first_thousand_rows_of_the_exchanges_own_ids() -> None:
    request = parse_rows("trades", {})
    assert (request.limit, request.order, request.selection.space) == (DEFAULT_LIMIT, "asc", "")
    assert request.fields[:2] == ("exchange", "symbol")
    assert "sequence_from" not in request.fields


@given(
    st.datetimes(
        min_value=datetime(1973, 6, 1),  # noqa: DTZ001 - hypothesis wants naive bounds
        max_value=datetime(9999, 12, 30),  # noqa: DTZ001
        timezones=st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
    )
)
def test_a_time_means_the_same_in_any_zone_and_as_microseconds(moment: datetime) -> None:
    offset = moment - EPOCH
    expected = (offset.days * 86_400 + offset.seconds) * 1_000_000 + offset.microseconds
    assert parse_time("start", moment.isoformat()) == expected
    assert parse_time("start", str(expected)) == expected
    # An unescaped plus sign in a URL arrives as a space.
    assert parse_time("start", moment.isoformat().replace("+", " ")) == expected


def test_a_naive_time_is_refused_instead_of_taken_in_the_hosts_zone() -> None:
    """TRAPS 13: naive ASX times were shifted by the host's time zone."""
    assert "names no time zone" in refused("start", start="2026-01-01T10:00:00")
    assert "is not a time" in refused("end", end="2026-01-01")


@pytest.mark.parametrize("text", ["1767225600", "1767225600000"])
def test_seconds_and_milliseconds_are_not_taken_for_microseconds(text: str) -> None:
    assert "looks like seconds or milliseconds" in refused("start", start=text)


@pytest.mark.parametrize(
    ("field", "parameters"),
    [
        ("start", {"start": "2026-13-01T00:00:00Z"}),
        ("start", {"start": "2026-01-01T00:00:00.1234567Z"}),
        ("start", {"start": "yesterday"}),
        ("end", {"end": str(10**18)}),
        ("end", {"start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"}),
        ("limit", {"limit": "0"}),
        ("limit", {"limit": str(MAX_LIMIT + 1)}),
        ("limit", {"limit": "ten"}),
        ("limit", {"limit": "1_0"}),
        ("order", {"order": "up"}),
        ("fields", {"fields": "price,volume"}),
        ("fields", {"fields": "price,price"}),
        ("fields", {"fields": ""}),
        ("symbols", {"symbols": "btcusdt"}),
        ("symbols", {"symbols": "BTCUSDT,"}),
        ("symbols", {"symbols": ",".join(f"S{number}" for number in range(501))}),
        ("exchange", {"exchange": "Binance"}),
        ("exchange", {"exchange": "' OR 1=1 --"}),
        ("space", {"space": "AGG"}),
    ],
)
def test_a_wrong_parameter_is_named(field: str, parameters: dict[str, str]) -> None:
    refused(field, **parameters)


@pytest.mark.parametrize(("name", "meant"), [("symbol", "symbols"), ("strat", "start"), ("limits", "limit")])
def test_an_unknown_parameter_is_refused_with_the_nearest_known(name: str, meant: str) -> None:
    assert f"did you mean {meant!r}?" in refused(name, **{name: "1"})


@given(st.dictionaries(st.sampled_from([*ROW_PARAMETERS, *BAR_PARAMETERS, "x"]), st.text(max_size=40)))
def test_any_text_is_understood_or_refused(parameters: dict[str, str]) -> None:
    for parse in (lambda given: parse_rows("quotes", given), parse_bars):
        try:
            limit = parse(parameters).limit
        except BadRequest as error:
            blamed = error.field
        else:
            blamed = None
            assert 1 <= limit <= MAX_LIMIT
        assert blamed is None or blamed in parameters


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1), ("5s", 5), ("1m", 60), ("15m", 900), ("1h", 3600), ("1d", 86_400), ("90m", 5400)]
)
def test_intervals(text: str, seconds: int) -> None:
    assert parse_interval(text) == seconds


@pytest.mark.parametrize("text", ["0s", "2d", "1w", "1.5m", "m", "60", "25h"])
def test_other_intervals_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="allowed: 1s to 1d"):
        parse_bars({"interval": text})


def test_bars_never_mix_numberings() -> None:
    with pytest.raises(BadRequest, match="never mixes"):
        parse_bars({"space": "all"})
    assert parse_rows("trades", {"space": "all"}).selection.space is None
    assert parse_bars({"space": "agg"}).selection.space == "agg"


def test_the_digest_binds_a_cursor_to_its_question_but_not_to_the_page_size() -> None:
    one = parse_rows("trades", {"symbols": "A,B"})
    assert one.digest() == parse_rows("trades", {"symbols": "B,A", "limit": "5", "fields": "price"}).digest()
    assert one.digest() != parse_rows("trades", {"symbols": "A"}).digest()
    assert one.digest() != parse_rows("trades", {"symbols": "A,B", "order": "desc"}).digest()
    assert one.digest() != parse_rows("quotes", {"symbols": "A,B"}).digest()
    assert parse_bars({}).digest() != parse_bars({"interval": "5m"}).digest()
