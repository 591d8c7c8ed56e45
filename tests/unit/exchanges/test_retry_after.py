from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from k2ray.errors import ExchangeUnavailable, TooOften
from k2ray.exchanges.retry_after import retry_after_s
from k2ray.feed.transport import LATER_S, refused

NOON = "Tue, 24 Nov 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("17", 17.0),
        (" 0 ", 0.0),
        ("Tue, 24 Nov 2026 12:02:30 GMT", 150.0),
        ("Tuesday, 24-Nov-26 12:02:30 GMT", 150.0),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("\u00b2", None),
        ("-5", None),
        ("", None),
        (None, None),
    ],
)
def test_both_forms_of_the_header_are_read(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, NOON) == seconds


def test_without_the_exchanges_clock_ours_is_taken() -> None:
    in_ten_minutes = format_datetime(datetime.now(UTC) + timedelta(minutes=10), usegmt=True)
    assert retry_after_s(in_ten_minutes) == pytest.approx(600, abs=60)


def test_a_refused_handshake_says_for_how_long() -> None:
    """A date was taken for no word at all, and the exchange asked again after a minute."""
    error = refused("no", 429, "Tue, 24 Nov 2026 12:10:00 GMT", NOON)
    assert isinstance(error, TooOften)
    assert error.after_s == 600.0
    unsaid = refused("no", 418, "later")
    assert isinstance(unsaid, TooOften)
    assert unsaid.after_s == LATER_S
    assert type(refused("no", 503, "17")) is ExchangeUnavailable
