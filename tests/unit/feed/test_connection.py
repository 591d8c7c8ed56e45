"""The connection's machine: any interleaving of events keeps its promises, and each rule by itself."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2ray.feed import connection as machine
from k2ray.feed.connection import Connection
from k2ray.feed.gather import FLUSH_FRAMES, LOADED_FRAMES
from k2ray.settings import Feed

FEED = Feed(stale_after_s=30, ping_interval_s=180, pong_timeout_s=10, backoff_initial_s=1, backoff_max_s=60)


def largest(low: float, high: float) -> float:
    return high


def opened(now_s: float = 0.0, feed: Feed = FEED) -> Connection:
    subject = Connection(feed, largest)
    assert subject.handle(machine.Started(), now_s) == [machine.Open(1)]
    assert subject.handle(machine.Opened(1), now_s) == []
    return subject


def kinds(instructions: list[machine.Instruction]) -> list[type]:
    return [type(item) for item in instructions]


class World:
    """A shell that does what it is told, at random, and checks what the machine promises."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.subject = Connection(FEED, self.random.uniform)
        self.now_s = 100.0
        self.connecting: int | None = None
        self.up: int | None = None
        self.closing = False
        self.sent = 0
        self.published: Counter[bytes] = Counter()
        self.waited_s = 0.0
        self.drained = False

    def tell(self, event: machine.Event) -> None:
        for instruction in self.subject.handle(event, self.now_s):
            match instruction:
                case machine.Open(connection):
                    assert self.connecting is None, "two sockets"
                    assert self.up is None, "two sockets"
                    assert not self.drained
                    self.connecting, self.closing = connection, False
                case machine.Publish(_, gathered):
                    assert len(gathered.frames) == len(gathered.received_us)
                    self.published.update(gathered.frames)
                case machine.Close(connection):
                    assert self.up == connection
                    self.closing = True
                case machine.Ping(connection):
                    assert self.up == connection
                case machine.Drained():
                    assert self.connecting is None
                    assert self.up is None
                    self.drained = True

    def step(self, action: str) -> None:
        if action == "time":
            self.now_s += self.random.choice([0.001, 0.01, 0.3, 5.0, 40.0])
            self.tell(machine.Tick())
        elif action == "frames" and self.up is not None:
            count = self.random.choice([1, 10, 250, 2_500])
            frames = [str(self.sent + number).encode() for number in range(count)]
            self.sent += count
            self.tell(machine.Frames(self.up, frames, 1))
        elif action == "connect" and self.connecting is not None:
            number, self.connecting = self.connecting, None
            self.up = number
            self.tell(machine.Opened(number))
        elif action == "refuse" and self.connecting is not None:
            number, self.connecting = self.connecting, None
            self.tell(machine.Failed(number, "refused"))
        elif action == "gone" and self.up is not None:
            number, self.up = self.up, None
            self.tell(machine.Closed(number, "gone"))
        elif action == "pong" and self.up is not None:
            self.tell(machine.Pong(self.up))
        elif action == "stale news":
            old = self.subject.connection - 1
            self.tell(machine.Closed(old, "late"))
            self.tell(machine.Pong(old))
            self.tell(machine.Opened(old))
        elif action == "shutdown" and self.up is not None:
            self.tell(machine.ShutdownAnnounced(self.up))
        elif action == "drain":
            self.tell(machine.DrainRequested())

    def run_on(self) -> None:
        """Let time pass with a peer that accepts, until nothing changes any more or a connection is up."""
        for _ in range(50):
            if self.connecting is not None:
                self.step("connect")
            if self.closing and self.up is not None:
                self.step("gone")
            due = self.subject.due_s
            if due is None or self.drained:
                return
            if self.up is not None and not self.closing and self.subject.gathered == 0:
                return
            self.now_s = max(self.now_s, due)
            self.tell(machine.Tick())


ACTIONS = ("time", "frames", "connect", "refuse", "gone", "pong", "stale news", "shutdown")


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), actions=st.lists(st.sampled_from(ACTIONS), max_size=80))
def test_any_interleaving_has_one_socket_reconnects_and_publishes_each_frame_once(
    seed: int, actions: list[str]
) -> None:
    world = World(seed)
    world.tell(machine.Started())
    for action in actions:
        world.step(action)
    world.run_on()
    assert world.up is not None, f"did not reconnect: {world.subject.state}"
    assert world.published.total() == world.sent
    assert max(world.published.values(), default=1) == 1


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    before=st.lists(st.sampled_from(ACTIONS), max_size=40),
    after=st.lists(st.sampled_from((*ACTIONS, "drain")), max_size=10),
)
def test_a_drain_always_ends_with_everything_published(seed: int, before: list[str], after: list[str]) -> None:
    world = World(seed)
    world.tell(machine.Started())
    for action in [*before, "drain", *after]:
        world.step(action)
    world.run_on()
    assert world.drained
    assert world.subject.state == "drained"
    assert world.subject.due_s is None
    assert world.published.total() == world.sent
    assert max(world.published.values(), default=1) == 1


@settings(max_examples=100, deadline=None)
@given(failures=st.integers(1, 80), seed=st.integers(0, 2**32))
def test_reconnect_delays_are_bounded_and_jittered_in_full(failures: int, seed: int) -> None:
    asked: list[tuple[float, float]] = []
    source = random.Random(seed)

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return source.uniform(low, high)

    subject = Connection(FEED, uniform)
    now_s = 0.0
    subject.handle(machine.Started(), now_s)
    for number in range(1, failures + 1):
        subject.handle(machine.Failed(number, "refused"), now_s)
        due = subject.due_s
        assert due is not None
        assert now_s <= due <= now_s + FEED.backoff_max_s
        now_s = due
        assert subject.handle(machine.Tick(), now_s) == [machine.Open(number + 1)]
    assert asked == [(0.0, min(60.0, 2.0**number)) for number in range(failures)]


def test_no_random_number_means_no_shared_moment() -> None:
    """Reconnect storms without jitter: two feeds that fail together come back apart."""
    dues = set()
    for seed in range(20):
        subject = Connection(FEED, random.Random(seed).uniform)
        subject.handle(machine.Started(), 0.0)
        subject.handle(machine.Failed(1, "refused"), 0.0)
        dues.add(subject.due_s)
    assert len(dues) == 20


def test_a_peer_that_stops_answering_pings_is_cut() -> None:
    """Trap 7: the heartbeat task died at its first ping."""
    subject = opened(feed=Feed(stale_after_s=1000, ping_interval_s=180, pong_timeout_s=10))
    assert subject.due_s == 180
    assert subject.handle(machine.Tick(), 180) == [machine.Ping(1)]
    assert subject.handle(machine.Tick(), 189.9) == []
    (close,) = subject.handle(machine.Tick(), 190)
    assert isinstance(close, machine.Close)
    assert close.cut
    assert "pong" in close.reason
    assert subject.handle(machine.Closed(1, "cut"), 190) == []
    assert subject.handle(machine.Tick(), 191) == [machine.Open(2)]


def test_an_answered_ping_keeps_the_connection() -> None:
    subject = opened(feed=Feed(stale_after_s=1000, ping_interval_s=180, pong_timeout_s=10))
    for number in range(1, 5):
        assert subject.handle(machine.Tick(), 180 * number) == [machine.Ping(1)]
        assert subject.handle(machine.Pong(1), 180 * number + 9) == []


def test_a_silent_peer_is_probed_and_left_alone_when_it_answers() -> None:
    """Thin symbols are silent for long: silence alone must not reconnect."""
    subject = opened()
    assert subject.handle(machine.Tick(), 29.9) == []
    assert subject.handle(machine.Tick(), 30) == [machine.Ping(1)]
    assert subject.handle(machine.Pong(1), 30.1) == []
    assert subject.handle(machine.Tick(), 60) == []
    assert subject.handle(machine.Tick(), 60.1) == [machine.Ping(1)]
    assert kinds(subject.handle(machine.Tick(), 70.1)) == [machine.Close]


def test_frames_put_off_the_probe() -> None:
    subject = opened()
    for second in range(1, 100):
        out = subject.handle(machine.Frames(1, [b"x"], 1), float(second))
        assert machine.Ping not in kinds(out)


def test_a_stable_connection_resets_the_backoff_and_a_short_one_does_not() -> None:
    subject = opened()
    subject.handle(machine.Closed(1, "short"), 1.0)
    assert subject.due_s == 2.0
    subject.handle(machine.Tick(), 2.0)
    subject.handle(machine.Opened(2), 2.0)
    subject.handle(machine.Closed(2, "short again"), 3.0)
    assert subject.due_s == 5.0
    subject.handle(machine.Tick(), 5.0)
    subject.handle(machine.Opened(3), 5.0)
    subject.handle(machine.Closed(3, "after a good while"), 5.0 + machine.STABLE_AFTER_S)
    assert subject.due_s == 5.0 + machine.STABLE_AFTER_S + 1.0


def test_a_close_that_is_not_confirmed_is_cut() -> None:
    subject = opened()
    assert subject.handle(machine.ShutdownAnnounced(1), 1.0) == [
        machine.Close(1, "the exchange announced a shutdown", cut=False)
    ]
    (cut,) = subject.handle(machine.Tick(), 1.0 + machine.CLOSE_TIMEOUT_S)
    assert isinstance(cut, machine.Close)
    assert cut.cut


def test_frames_that_arrive_while_closing_are_published() -> None:
    subject = opened()
    subject.handle(machine.ShutdownAnnounced(1), 1.0)
    subject.handle(machine.Frames(1, [b"late"], 5), 1.1)
    (publish,) = subject.handle(machine.Closed(1, "bye"), 1.2)
    assert isinstance(publish, machine.Publish)
    assert publish.connection == 1
    assert publish.gathered.frames == [b"late"]


def test_a_drain_while_waiting_ends_at_once() -> None:
    """Trap 8: the stop was not looked at while idle."""
    subject = Connection(FEED, largest)
    assert subject.handle(machine.DrainRequested(), 0.0) == [machine.Drained()]
    assert subject.handle(machine.Tick(), 100.0) == []


def test_a_drain_while_connecting_ends_with_the_attempt() -> None:
    subject = Connection(FEED, largest)
    subject.handle(machine.Started(), 0.0)
    assert subject.handle(machine.DrainRequested(), 0.0) == []
    assert subject.handle(machine.Failed(1, "given up"), 0.1) == [machine.Drained()]


def test_a_drain_that_loses_the_race_against_the_connect_closes_it() -> None:
    subject = Connection(FEED, largest)
    subject.handle(machine.Started(), 0.0)
    subject.handle(machine.DrainRequested(), 0.0)
    assert kinds(subject.handle(machine.Opened(1), 0.1)) == [machine.Close]
    assert subject.handle(machine.Closed(1, "bye"), 0.2) == [machine.Drained()]


@pytest.mark.parametrize("count", [1, LOADED_FRAMES - 1, LOADED_FRAMES, FLUSH_FRAMES - 1, FLUSH_FRAMES])
def test_the_machine_asks_to_be_woken_when_frames_are_due(count: int) -> None:
    subject = opened(feed=Feed(linger_s=0.02, linger_idle_s=0.25))
    out = subject.handle(machine.Frames(1, [b"x"] * count, 1), 1.0)
    if count >= FLUSH_FRAMES:
        assert kinds(out) == [machine.Publish]
        return
    due = 1.02 if count >= LOADED_FRAMES else 1.25
    assert subject.due_s == due
    assert kinds(subject.handle(machine.Tick(), due)) == [machine.Publish]
