import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from k2ray.sim.book import BOOK_LOOP, Books
from k2ray.sim.frames import Form
from k2ray.sim.market import Market

NOW = 1_795_454_110_449_123
COMBINED, RAW = Form(True, False), Form(False, True)


class Client:
    """A book kept as the exchange's documentation says, without knowing how the simulator makes it."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        self.last = snapshot["lastUpdateId"]
        self.sides = {"b": dict(snapshot["bids"]), "a": dict(snapshot["asks"])}

    def take(self, event: dict[str, Any], first: bool) -> None:
        if event["u"] <= self.last:
            return
        assert event["U"] <= self.last + 1 if first else event["U"] == self.last + 1
        self.last = event["u"]
        for side, book in self.sides.items():
            for price, quantity in event[side]:
                if float(quantity) == 0:
                    book.pop(price, None)
                else:
                    book[price] = quantity


@settings(max_examples=60, deadline=None)
@given(
    pauses=st.lists(st.floats(0.0, 3.0), min_size=12, max_size=60),
    rate=st.sampled_from([3.0, 50.0, 4000.0]),
    asked=st.integers(0, 11),
    stream=st.sampled_from(["depth", "depth@100ms"]),
)
def test_a_snapshot_and_the_events_after_it_give_the_next_snapshot(
    pauses: list[float], rate: float, asked: int, stream: str
) -> None:
    books = Books(Market(3, ("BTCUSDT", "SHIBUSDT")), rate)
    elapsed, client, ends = 0.0, None, None
    for number, pause in enumerate(pauses):
        elapsed += pause
        for event in books.tick(elapsed, NOW):
            if event.stream != f"shibusdt@{stream}":
                continue
            data = json.loads(books.encode(event, RAW))
            assert data["U"] <= data["u"]
            assert ends is None or data["U"] == ends + 1, "every update is told once"
            if client is not None:
                client.take(data, first=ends is None or ends <= client.last)
            ends = data["u"]
        if number == asked:
            client = Client(books.snapshot(1, 5000))
    assert client is not None
    final = books.snapshot(1, 5000)
    if client.last == final["lastUpdateId"]:
        assert client.sides == {"b": dict(final["bids"]), "a": dict(final["asks"])}
    assert all(float(bid[0]) < float(ask[0]) for bid in final["bids"][:1] for ask in final["asks"][:1])


def test_a_book_is_sorted_from_its_middle_and_cut_at_the_limit() -> None:
    books = Books(Market(3, ("BTCUSDT",)), 1000)
    books.tick(100.0, NOW)
    whole = books.snapshot(0, 5000)
    bids, asks = ([float(price) for price, _ in whole[side]] for side in ("bids", "asks"))
    assert bids == sorted(bids, reverse=True)
    assert asks == sorted(asks)
    assert bids[0] < asks[0]
    assert min(len(bids), len(asks)) > 50
    assert books.snapshot(0, 5)["bids"] == whole["bids"][:5]


def test_the_loop_closes_without_a_seam() -> None:
    one, other = (Books(Market(3, ("BTCUSDT",)), BOOK_LOOP) for _ in range(2))
    one.tick(1.0, NOW)
    other.tick(2.0, NOW)
    first, later = one.snapshot(0, 5000), other.snapshot(0, 5000)
    assert later["lastUpdateId"] - first["lastUpdateId"] == BOOK_LOOP
    assert (first["bids"], first["asks"]) == (later["bids"], later["asks"])


def test_forms_differ_as_those_of_trades() -> None:
    books = Books(Market(3, ("BTCUSDT",)), 50)
    (event,) = books.tick(1.0, NOW)
    raw, combined = (json.loads(books.encode(event, form)) for form in (RAW, COMBINED))
    assert (raw["E"], combined["data"]["E"]) == (NOW, NOW // 1000)
    assert combined["stream"] == "btcusdt@depth@100ms"
