"""Make before break: any interleaving of two connections' events keeps its promises, and each rule by itself."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2ray.feed import events
from k2ray.feed.connection import Habits
from k2ray.feed.rotation import OVERLAP_MAX_S, OVERLAP_S, Rotation
from k2ray.settings import Feed

FEED = Feed(backoff_initial_s=1, backoff_max_s=60)
HABITS = Habits(lifetime_s=86_400, question=b"?")


class Exchange:
    """A shell and its peer that do what they are told, at random, and check what the machine promises."""

    def __init__(self, seed: int, habits: Habits = HABITS) -> None:
        self.random = random.Random(seed)
        self.subject = Rotation(FEED, self.random.uniform, habits)
        self.now_s = 1_000.0
        self.connecting: set[int] = set()
        self.up: set[int] = set()
        self.closing: set[int] = set()
        self.opened_s: dict[int, float] = {}
        self.alive: set[int] = set()
        self.answered: set[int] = set()
        self.sent = 0
        self.published: Counter[bytes] = Counter()
        self.drained = False
        self.draining = False

    @property
    def sockets(self) -> set[int]:
        return self.connecting | self.up

    @property
    def delivering(self) -> set[int]:
        return self.up - self.closing

    def proved(self, connection: int) -> bool:
        """Whether this connection is known to deliver what is sent from now on."""
        waited = self.now_s >= self.opened_s[connection] + FEED.pong_timeout_s
        return connection in self.answered or (connection in self.alive and waited)

    def tell(self, event: events.Event) -> None:
        ended_by_peer = isinstance(event, events.Closed)
        before = set(self.delivering) - ({event.connection} if isinstance(event, events.Closed) else set())
        for instruction in self.subject.handle(event, self.now_s):
            match instruction:
                case events.Open(connection):
                    assert not self.drained
                    assert not self.draining, "nothing is opened while draining"
                    assert connection not in self.sockets
                    self.connecting.add(connection)
                case events.Publish(_, gathered):
                    assert len(gathered.frames) == len(gathered.received_us)
                    self.published.update(gathered.frames)
                case events.Close(connection):
                    assert connection in self.up
                    self.closing.add(connection)
                    newer = [number for number in self.delivering if number > connection]
                    assert self.draining or all(map(self.proved, newer)), "closed before the next one delivers"
                case events.Ping(connection) | events.Say(connection):
                    assert connection in self.up
                case events.Replace():
                    raise AssertionError("a word between machines, not for the shell")
                case events.Drained():
                    assert not self.sockets
                    assert not self.drained
                    self.drained = True
            assert len(self.sockets) <= 2, "more than two sockets"
        if before and not self.draining and not ended_by_peer:
            assert self.delivering, "a rotation left the feed without a connection"

    def step(self, action: str) -> None:
        pick = self.random.choice
        up, open_ones = sorted(self.up), sorted(self.delivering)
        if action == "time":
            self.now_s += pick([0.001, 0.1, 1.0, 3.0, 3.0, 11.0, 40.0, 15_000.0])
            self.tell(events.Tick())
        elif action == "frames" and up:
            count = pick([1, 1, 10, 300])
            frames = [str(self.sent + number).encode() for number in range(count)]
            self.sent += count
            number = pick(up)
            self.alive.add(number)
            self.tell(events.Frames(number, frames, 1))
        elif action == "connect" and self.connecting:
            self.connect(pick(sorted(self.connecting)))
        elif action == "refuse" and self.connecting:
            number = pick(sorted(self.connecting))
            self.connecting.discard(number)
            self.tell(events.Failed(number, "refused"))
        elif action == "gone" and up:
            self.end(pick(up))
        elif action == "pong" and up:
            number = pick(up)
            self.alive.add(number)
            self.tell(events.Pong(number))
        elif action == "answer" and up:
            number = pick(up)
            self.answered.add(number)
            self.tell(events.Subscribed(number, pick([4, 4, 4, 3])))
        elif action == "shutdown" and open_ones:
            self.tell(events.ShutdownAnnounced(pick(open_ones)))
        elif action == "operator":
            self.tell(events.RotationRequested(events.OPERATOR))
        elif action == "caught up" and up:
            self.tell(events.CaughtUp(pick(up), pick([True, False])))
        elif action == "drain":
            self.draining = True
            self.tell(events.DrainRequested())

    def connect(self, number: int) -> None:
        self.connecting.discard(number)
        self.up.add(number)
        self.opened_s[number] = self.now_s
        self.tell(events.Opened(number))

    def end(self, number: int) -> None:
        self.up.discard(number)
        self.closing.discard(number)
        self.tell(events.Closed(number, "gone"))

    def be_kind(self) -> None:
        """Accept, answer and let time pass until one connection is up, alone and delivering, or all is drained."""
        for _ in range(200):
            if self.drained or (self.settled and self.subject.gathered == 0):
                return
            for number in sorted(self.connecting):
                self.connect(number)
            for number in sorted(self.closing):
                self.end(number)
            for number in sorted(self.up):
                self.alive.add(number)
                self.answered.add(number)
                self.tell(events.Pong(number))
                self.tell(events.Subscribed(number, 4))
            due_s = self.subject.due_s
            if due_s is not None:
                self.now_s = max(self.now_s, due_s)
            self.tell(events.Tick())

    @property
    def settled(self) -> bool:
        alone = self.subject.rising is None and self.subject.leaving is None
        return alone and self.subject.ready and len(self.up) == 1 and not self.closing


# Weighted so that rotations get to their end, not only under way.
ACTIONS = (
    *("time",) * 6,
    *("connect",) * 5,
    *("answer",) * 4,
    *("pong",) * 2,
    *("frames", "frames", "operator", "operator", "shutdown", "caught up", "refuse", "gone"),
)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), actions=st.lists(st.sampled_from(ACTIONS), max_size=120))
def test_any_interleaving_breaks_nothing_before_it_made_the_next(seed: int, actions: list[str]) -> None:
    """Trap 6: rotation closed the old connection before the new one was up."""
    world = Exchange(seed)
    world.tell(events.Started())
    for action in actions:
        world.step(action)
    world.be_kind()
    assert world.settled, f"not open again: {world.subject.state}"
    assert world.published.total() == world.sent
    assert max(world.published.values(), default=1) == 1


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    before=st.lists(st.sampled_from(ACTIONS), max_size=60),
    after=st.lists(st.sampled_from((*ACTIONS, "drain")), max_size=20),
)
def test_a_drain_amid_anything_ends_with_everything_published(seed: int, before: list[str], after: list[str]) -> None:
    world = Exchange(seed)
    world.tell(events.Started())
    for action in [*before, "drain", *after]:
        world.step(action)
    world.be_kind()
    assert world.drained
    assert world.subject.state == "drained"
    assert world.subject.due_s is None
    assert not world.sockets
    assert world.published.total() == world.sent
    assert max(world.published.values(), default=1) == 1


def largest(low: float, high: float) -> float:
    return high


class Feed1:
    """One feed with a readable history."""

    def __init__(self, habits: Habits = HABITS, feed: Feed = FEED) -> None:
        self.subject = Rotation(feed, largest, habits)
        self.now_s = 0.0
        self.done: list[events.Instruction] = []

    def tell(self, event: events.Event, at_s: float | None = None) -> list[str]:
        self.now_s = self.now_s if at_s is None else at_s
        out = self.subject.handle(event, self.now_s)
        self.done += out
        return [
            f"{type(item).__name__.lower()} {item.connection}"
            for item in out
            if isinstance(item, events.Open | events.Close)
        ]

    def deliver(self, connection: int) -> list[str]:
        said = self.tell(events.Opened(connection))
        said += self.tell(events.Pong(connection))
        return said + self.tell(events.Subscribed(connection, 4))

    def up(self) -> Feed1:
        """Let the first connection be old enough that its replacement needs no backoff."""
        assert self.tell(events.Started()) == ["open 1"]
        assert self.deliver(1) == []
        assert self.subject.ready
        for second in range(10, 101, 10):
            self.tell(events.Frames(1, [b"x"], 1), second)
            self.tell(events.Pong(1))
        return self


def test_the_old_connection_is_closed_only_after_both_have_overlapped() -> None:
    feed = Feed1().up()
    assert feed.tell(events.RotationRequested("operator")) == ["open 2"]
    assert feed.tell(events.Tick(), 105) == []
    assert feed.tell(events.Opened(2)) == []
    assert feed.tell(events.Tick(), 110) == [], "open is not delivering"
    assert feed.tell(events.Subscribed(2, 4)) == []
    assert feed.tell(events.Tick(), 110 + OVERLAP_S - 0.01) == []
    assert feed.subject.due_s == pytest.approx(110 + OVERLAP_S)
    assert feed.tell(events.Tick(), 110 + OVERLAP_S) == ["close 1"]
    assert feed.subject.serving.connection == 2
    assert feed.tell(events.Closed(1, "bye")) == []
    assert feed.subject.leaving is None
    assert feed.subject.rotations["operator"] == 1
    assert feed.subject.reconnects == 0


def test_the_old_connection_is_kept_until_it_has_caught_up() -> None:
    feed = Feed1().up()
    feed.tell(events.RotationRequested("operator"))
    feed.deliver(2)
    feed.tell(events.CaughtUp(2, False))
    assert feed.tell(events.Tick(), 100 + OVERLAP_S) == []
    assert feed.tell(events.Tick(), 100 + OVERLAP_S + 5) == []
    assert feed.tell(events.CaughtUp(2, True), 108) == ["close 1"]


def test_an_old_connection_that_never_catches_up_is_let_go() -> None:
    feed = Feed1().up()
    feed.tell(events.RotationRequested("operator"))
    feed.deliver(2)
    feed.tell(events.CaughtUp(2, False))
    assert feed.tell(events.Tick(), 100 + OVERLAP_MAX_S - 0.1) == []
    assert feed.tell(events.Tick(), 100 + OVERLAP_MAX_S) == ["close 1"]


def test_a_new_connection_that_never_comes_up_leaves_the_old_one_alone() -> None:
    feed = Feed1().up()
    assert feed.tell(events.RotationRequested("operator")) == ["open 2"]
    delays, number = [], 2
    while number < 40:
        assert feed.tell(events.Failed(number, "refused")) == []
        waited_s = feed.subject.rising._attempt_s - feed.now_s  # type: ignore[union-attr,operator]
        delays.append(waited_s)
        opened: list[str] = []
        while not opened:
            due_s = feed.subject.due_s
            assert due_s is not None
            opened = feed.tell(events.Tick(), due_s)
            feed.tell(events.Frames(1, [b"x"], 1))
            feed.tell(events.Pong(1))
        number += 1
        assert opened == [f"open {number}"]
        assert feed.subject.serving.connection == 1
    assert delays[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(delays) == 60.0
    assert not [item for item in feed.done if isinstance(item, events.Close)]


def test_if_the_old_one_dies_meanwhile_the_new_one_is_the_reconnect() -> None:
    feed = Feed1().up()
    feed.tell(events.RotationRequested("schedule"))
    assert feed.tell(events.Closed(1, "cut")) == [], "the attempt under way is enough"
    assert feed.subject.serving.connection == 2
    assert feed.subject.reconnects == 1
    assert feed.subject.rotations["schedule"] == 0
    feed.deliver(2)
    assert feed.subject.ready


def test_if_the_old_one_dies_when_the_new_one_delivers_nothing_was_lost() -> None:
    feed = Feed1().up()
    feed.tell(events.RotationRequested("shutdown"))
    feed.deliver(2)
    assert feed.tell(events.Closed(1, "cut by the exchange")) == []
    assert feed.subject.serving.connection == 2
    assert feed.subject.reconnects == 0
    assert feed.subject.rotations["shutdown"] == 1


def test_a_rotation_during_a_rotation_is_the_same_rotation() -> None:
    feed = Feed1().up()
    feed.tell(events.RotationRequested("operator"))
    assert feed.tell(events.RotationRequested("operator")) == []
    assert feed.tell(events.ShutdownAnnounced(1)) == []
    feed.deliver(2)
    assert feed.tell(events.Tick(), 100 + OVERLAP_S) == ["close 1"]
    assert feed.subject.rotations.total() == 1


def test_a_rotation_while_the_old_one_is_leaving_waits_for_its_end() -> None:
    feed = Feed1().up()
    feed.tell(events.RotationRequested("operator"))
    feed.deliver(2)
    assert feed.tell(events.Tick(), 100 + OVERLAP_S) == ["close 1"]
    assert feed.tell(events.ShutdownAnnounced(2)) == [], "that would be three sockets"
    feed.tell(events.Closed(1, "bye"), 104)
    assert feed.subject.rising is not None
    opened = feed.tell(events.Tick(), 106)
    assert opened == ["open 3"], "with backoff: the second connection was not there for long"


def test_a_new_connection_that_announces_its_shutdown_is_tried_again() -> None:
    feed = Feed1().up()
    feed.tell(events.RotationRequested("operator"))
    feed.deliver(2)
    assert feed.tell(events.ShutdownAnnounced(2)) == ["close 2"]
    feed.tell(events.Closed(2, "bye"))
    assert feed.tell(events.Tick(), 102) == ["open 3"]
    assert feed.subject.serving.connection == 1


def test_an_exchange_that_announces_a_shutdown_again_and_again_makes_no_storm() -> None:
    feed = Feed1().up()
    opens = []
    while feed.now_s < 700:
        serving = feed.subject.serving
        if serving.delivering_s is not None and feed.subject.rising is None and feed.subject.leaving is None:
            said = feed.tell(events.ShutdownAnnounced(serving.connection))
        else:
            due_s = feed.subject.due_s
            assert due_s is not None
            said = feed.tell(events.Tick(), max(feed.now_s, due_s))
        for word in list(said):
            what, number = word.split()
            if what == "open":
                opens.append(feed.now_s)
                feed.deliver(int(number))
            else:
                feed.tell(events.Closed(int(number), "bye"))
    assert len(opens) < 20, "the backoff grows while connections do not last"


def test_a_missed_pong_rotates_and_the_old_one_is_kept_until_the_new_one_delivers() -> None:
    """Trap 7. Where only the network had a pause, keeping it loses nothing."""
    feed = Feed1().up()
    assert feed.tell(events.Tick(), 130) == [], "probed"
    assert feed.tell(events.Tick(), 140) == ["open 2"]
    assert not feed.subject.ready
    feed.tell(events.Frames(1, [b"late"], 1))
    feed.deliver(2)
    assert feed.tell(events.Tick(), 140 + OVERLAP_S) == ["close 1"]
    assert +feed.subject.rotations == Counter(stale=1)
    (close,) = [item for item in feed.done if isinstance(item, events.Close)]
    assert close.cut, "nobody would answer a close"


def test_every_schedule_of_a_day_is_kept() -> None:
    """24 hours with a rotation every 4: 6 rotations, 480 pings, and the exchange's 24 h cut never comes."""
    feed = Feed1(feed=Feed(rotate_jitter=0.0, stale_after_s=1e9))
    feed.tell(events.Started())
    feed.deliver(1)
    oldest_s, began_s = 0.0, {1: 0.0}
    while feed.now_s < 86_400 + 60:
        due_s = feed.subject.due_s
        assert due_s is not None
        feed.now_s = max(feed.now_s, due_s)
        before = len(feed.done)
        feed.tell(events.Tick())
        for item in feed.done[before:]:
            if isinstance(item, events.Open):
                began_s[item.connection] = feed.now_s
                feed.deliver(item.connection)
            elif isinstance(item, events.Close):
                oldest_s = max(oldest_s, feed.now_s - began_s[item.connection])
                feed.tell(events.Closed(item.connection, "bye"))
            elif isinstance(item, events.Ping):
                feed.tell(events.Pong(item.connection))
    assert feed.subject.rotations["schedule"] == 6 - 1 + (feed.now_s >= 86_400)
    assert 470 <= sum(isinstance(item, events.Ping) for item in feed.done) <= 500
    assert oldest_s < 15_000
    assert feed.subject.reconnects == 0
