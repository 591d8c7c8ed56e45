"""No connection says more in a second than the exchange allows, and everything is said in the end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from k2ray.feed.outbox import Outbox


@given(
    steps=st.lists(st.tuples(st.floats(0, 2), st.sampled_from(["text", "ping", "many"])), max_size=60),
    per_s=st.integers(2, 10),
)
def test_no_second_holds_more_than_allowed_and_nothing_is_forgotten(steps: list[tuple[float, str]], per_s: int) -> None:
    outbox = Outbox(per_s)
    now_s, put, sent = 50.0, 0, []
    for pause_s, what in steps:
        now_s += pause_s
        for _ in range(20 if what == "many" else 1):
            put += 1
            if what == "ping":
                outbox.ping()
            else:
                outbox.say(b"text")
        sent += [now_s] * len(outbox.take(now_s))
    while outbox.due_s is not None:
        now_s = outbox.due_s
        sent += [now_s] * len(outbox.take(now_s))
    assert len(sent) == put
    assert all(sum(1 for at in sent if start <= at < start + 1) < per_s for start in sent), "one is left for a pong"


def test_texts_keep_their_order_and_a_ping_goes_first() -> None:
    outbox = Outbox(5)
    outbox.say(b"a")
    outbox.say(b"b")
    outbox.ping()
    assert outbox.take(0.0) == [None, b"a", b"b"]
    assert outbox.due_s is None
