"""Read Retry-After: for how many seconds an exchange wants to be left alone."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after_s(value: str | None, date: str | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for; None if it is not there or says nothing known.

    Args:
        value: The header: seconds, or an HTTP date (RFC 9110, 10.2.3).
        date: The answer's Date header: the exchange's clock, which the date is of. Without it, ours is taken.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    until = _moment(text)
    if until is None:
        return None
    now = _moment(date or "") or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
