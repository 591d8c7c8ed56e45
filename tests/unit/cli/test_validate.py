import pytest

from k2ray.cli.validate import moment
from k2ray.errors import BadInput

NOW = 1_795_435_200.0


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("7d", NOW - 604_800),
        ("1.5 h", NOW - 5400),
        ("90min", NOW - 5400),
        ("30s", NOW - 30),
        ("2026-11-23T12:00", NOW),
        ("2026-11-23T13:00+01:00", NOW),
        ("2026-11-23", NOW - 43_200),
    ],
)
def test_a_moment_is_a_time_or_how_long_ago(text: str, at: float) -> None:
    assert moment(text, NOW) == at


@pytest.mark.parametrize("text", ["", "yesterday", "7 weeks", "-3h"])
def test_what_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        moment(text, NOW)
