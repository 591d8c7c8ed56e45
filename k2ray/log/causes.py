"""Why something is a dead letter, as one of a few causes that a metric can carry; the reason is with the letter. Pure.

Reasons are sentences for people with values in them; what they say tells the kind of trouble.
"""

from __future__ import annotations

import re

MALFORMED = "malformed"

_CAUSES = (
    ("refused", re.compile(r"the exchange answered")),
    ("out_of_range", re.compile(r"does not fit|^event time of")),
    ("unknown", re.compile(r"^unknown |^no channel has|^rows of another table")),
)


def cause_of(reason: str) -> str:
    """Return the cause that a reason is of.

    `refused` is an exchange's error, `out_of_range` a value that no column holds, `unknown` a shape, schema or kind
    that this version does not know, `malformed` everything else that cannot be read.
    """
    return next((cause for cause, pattern in _CAUSES if pattern.search(reason)), MALFORMED)
