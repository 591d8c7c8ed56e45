"""What of the local broker can be tested without one."""

from __future__ import annotations

import uuid

from k2ray.log.broker import new_cluster_id


def test_a_cluster_id_is_never_taken_for_an_option() -> None:
    """Kafka's storage tool refused to format where the id began with a dash: one start of 64 failed."""
    dashed = uuid.UUID(bytes=b"\xf8" + bytes(15))
    draws = iter([dashed, uuid.UUID(int=1)])
    assert new_cluster_id(lambda: next(draws)) == "AAAAAAAAAAAAAAAAAAAAAQ"
    assert all(not new_cluster_id().startswith("-") and len(new_cluster_id()) == 22 for _ in range(300))
