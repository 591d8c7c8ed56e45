"""Which settings are secret, and how settings look when they are printed."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

MASK = "********"

_SECRET_KEY = re.compile(r"password|secret|token|credential|access-key|api.?key|sasl\.", re.IGNORECASE)


def is_secret(location: tuple[str, ...]) -> bool:
    """Tell whether the value at a setting's path may be shown in an error."""
    return any(_SECRET_KEY.search(part) for part in location) or location[-1:] == ("uri",)


def mask(value: Any, key: str = "") -> Any:
    """Return settings as plain values with secrets replaced by `MASK`, also inside of URLs."""
    if isinstance(value, dict):
        return {name: mask(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [mask(inner, key) for inner in value]
    if value is None:
        return None
    if _SECRET_KEY.search(key):
        return MASK
    if isinstance(value, str) and "@" in value and "://" in value:
        parts = urlsplit(value)
        if parts.password:
            user = f"{parts.username}:{MASK}@{parts.hostname}" + (f":{parts.port}" if parts.port else "")
            return urlunsplit(parts._replace(netloc=user))
    return value
