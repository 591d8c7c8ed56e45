"""The connection's machine: any interleaving of events keeps its promises, and each rule by itself."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2ray.exchanges.base import Heartbeat
from k2ray.feed import events as machine
from k2ray.feed.connection import CLOSE_TIMEOUT_S, STABLE_AFTER_S, Connection, Habits
from k2ray.feed.gather import FLUSH_FRAMES, LOADED_FRAMES
from k2ray.settings import Feed

FEED = Feed(stale_after_s=30, ping_interval_s=180, pong_timeout_s=10, backoff_initial_s=1, backoff_max_s=60)


def largest(low: float, high: float) -> float:
    return high


def opened(now_s: float = 0.0, feed: Feed = FEED, habits: Habits | None = None) -> Connection:
    """Return one that is open since `now_s` and has answered its first ping."""
    subject = Connection(feed, largest, habits)
    assert subject.handle(machine.Started(), now_s) == [machine.Open(1)]
    assert subject.handle(machine.Opened(1), now_s)[0] == machine.Ping(1)
    assert subject.handle(machine.Pong(1), now_s) == []
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
                case machine.Ping(connection) | machine.Replace(connection):
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
        elif action == "close" and self.up is not None:
            self.tell(machine.CloseRequested(self.up, "for the test"))
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


ACTIONS = ("time", "frames", "connect", "refuse", "gone", "pong", "stale news", "shutdown", "close")


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


PINGS = Feed(stale_after_s=1000, ping_interval_s=180, pong_timeout_s=10)


def test_a_peer_that_stops_answering_pings_is_replaced() -> None:
    """Trap 7: the heartbeat task died at its first ping."""
    subject = opened(feed=PINGS)
    assert subject.due_s == 180
    assert subject.handle(machine.Tick(), 180) == [machine.Ping(1)]
    assert subject.handle(machine.Tick(), 189.9) == []
    assert not subject.suspect
    assert subject.handle(machine.Tick(), 190) == [machine.Replace(1, "heartbeat", "no pong within 10 s")]
    assert subject.suspect
    assert subject.state == "open", "its socket may still deliver; the owner decides"
    assert subject.handle(machine.CloseRequested(1, "no pong"), 191) == [machine.Close(1, "no pong", cut=True)]


def test_pings_go_on_while_nobody_replaces_the_connection() -> None:
    """A heartbeat that stops after the first trouble is none."""
    subject = opened(feed=PINGS)
    now_s, seen = 0.0, []
    while now_s < 2_000:
        due_s = subject.due_s
        assert due_s is not None
        now_s = due_s
        seen += kinds(subject.handle(machine.Tick(), now_s))
    assert seen.count(machine.Ping) >= 2_000 // 180
    assert abs(seen.count(machine.Replace) - seen.count(machine.Ping)) <= 1


def test_an_answered_ping_keeps_the_connection() -> None:
    subject = opened(feed=PINGS)
    for number in range(1, 5):
        assert subject.handle(machine.Tick(), 180 * number) == [machine.Ping(1)]
        assert subject.handle(machine.Pong(1), 180 * number + 9) == []


def test_pings_that_are_late_do_not_delay_those_after_them() -> None:
    subject = opened(feed=PINGS)
    for number in range(1, 60):
        assert subject.handle(machine.Tick(), 180 * number + 5) == [machine.Ping(1)]
        assert subject.handle(machine.Pong(1), 180 * number + 6) == []
    assert subject.due_s == 180 * 60
    assert subject.handle(machine.Tick(), 180 * 62) == [machine.Ping(1)], "a suspended machine woke"
    assert subject.due_s is not None
    assert subject.handle(machine.Pong(1), 180 * 62) == [], "and makes up for nothing"
    assert subject.due_s == 180 * 63


def test_time_compression_divides_schedules_and_leaves_timeouts() -> None:
    subject = opened(feed=PINGS.model_copy(update={"time_compression": 720.0, "rotate_jitter": 0.0}))
    assert subject.handle(machine.Tick(), 0.25) == [machine.Ping(1)]
    assert subject.handle(machine.Tick(), 10.2) == []
    assert subject.handle(machine.Pong(1), 10.2) == [machine.Ping(1)]
    subject.handle(machine.Pong(1), 19.9)
    assert machine.Replace(1, "schedule", "20 s old") in subject.handle(machine.Tick(), 20.0)


def test_a_silent_peer_is_probed_and_left_alone_when_it_answers() -> None:
    """Thin symbols are silent for long: silence alone must not reconnect."""
    subject = opened()
    now_s = 0.0
    for number in range(1, 100):
        assert subject.handle(machine.Tick(), now_s + 29.9) == []
        assert subject.handle(machine.Tick(), now_s + 30) == [machine.Ping(1)]
        assert subject.tally.probes == number
        now_s += 30.1
        assert subject.handle(machine.Pong(1), now_s) == []
    assert not subject.suspect


def test_a_silent_peer_that_does_not_answer_the_probe_is_replaced_as_stale() -> None:
    subject = opened()
    assert subject.handle(machine.Tick(), 30) == [machine.Ping(1)]
    assert subject.handle(machine.Tick(), 40) == [machine.Replace(1, "stale", "no pong within 10 s")]


QUESTION = Habits(question=b"what is subscribed?")


def test_a_probe_asks_what_is_subscribed_and_lost_streams_replace_the_connection() -> None:
    """A peer that answers pings and sends nothing: it forgot what we want of it."""
    subject = Connection(FEED, largest, QUESTION)
    subject.handle(machine.Started(), 0)
    ask = machine.Say(1, b"what is subscribed?")
    assert subject.handle(machine.Opened(1), 0) == [machine.Ping(1), ask]
    subject.handle(machine.Pong(1), 0.1)
    assert subject.handle(machine.Subscribed(1, 8), 0.1) == []
    assert subject.handle(machine.Tick(), 30.1) == [machine.Ping(1), ask]
    subject.handle(machine.Pong(1), 30.2)
    assert subject.handle(machine.Subscribed(1, 8), 30.2) == []
    subject.handle(machine.Tick(), 60.2)
    assert subject.handle(machine.Subscribed(1, 7), 60.3) == [machine.Replace(1, "stale", "7 of 8 streams are left")]


def busy(seconds: int, a_second: int, question: bool = True) -> Connection:
    """Return one that has delivered so many frames a second until now."""
    subject = opened(habits=QUESTION if question else None)
    for second in range(1, seconds + 1):
        subject.handle(machine.Frames(1, [b"x"] * a_second, 1), float(second))
        subject.handle(machine.Pong(1), float(second))
    return subject


def silence(subject: Connection, from_s: float, to_s: float) -> list[machine.Instruction]:
    """Let a peer that answers everything send no data; return what the machine said."""
    said, now_s = [], from_s
    while now_s < to_s:
        due_s = subject.due_s
        assert due_s is not None
        now_s = max(now_s, due_s)
        out = subject.handle(machine.Tick(), now_s)
        said += out
        if machine.Ping(1) in out:
            subject.handle(machine.Pong(1), now_s)
        if any(isinstance(item, machine.Say) for item in out):
            subject.handle(machine.Frames(1, [b"the answer"], 1), now_s)
            subject.handle(machine.Subscribed(1, 8), now_s)
    return said


def test_a_busy_connection_that_falls_silent_is_replaced_though_its_peer_answers() -> None:
    """A feed that dies silently: pings are answered, the subscriptions are listed, and no trade comes."""
    subject = busy(seconds=100, a_second=20)
    words = [item for item in silence(subject, 100, 1_000) if isinstance(item, machine.Replace)]
    assert [(word.reason, word.connection) for word in words] == [("stale", 1)], "once"
    assert "though the peer answers" in words[0].detail


def test_a_thin_connection_that_is_silent_for_an_hour_is_left_alone() -> None:
    """Watchdog false alarms on thin symbols."""
    subject = busy(seconds=2_000, a_second=1)
    words = [item for item in silence(subject, 2_000, 5_600) if isinstance(item, machine.Replace)]
    assert words == []
    assert subject.tally.probes > 100


def test_an_answer_to_a_probe_is_life_but_no_data() -> None:
    """An age of the data that every probe resets would never raise an alarm."""
    subject = busy(seconds=10, a_second=1)
    silence(subject, 10, 200)
    assert subject.last_data_s == 10


def test_it_delivers_once_the_exchange_lists_what_is_subscribed() -> None:
    """No trade of a thin symbol can be waited for."""
    subject = opened(habits=QUESTION)
    assert subject.delivering_s is None, "a pong alone says nothing of the streams"
    subject.handle(machine.Frames(1, [b"x"], 1), 1.0)
    assert subject.delivering_s is None, "nor does one symbol's frame say anything of another"
    subject.handle(machine.Subscribed(1, 8), 2.0)
    assert subject.delivering_s == 2.0


def test_without_an_answer_it_delivers_once_the_peer_has_lived_for_the_pong_timeout() -> None:
    subject = opened(habits=QUESTION)
    assert subject.due_s == 10
    subject.handle(machine.Tick(), 9.9)
    assert subject.delivering_s is None
    subject.handle(machine.Tick(), 10)
    assert subject.delivering_s == 10


def test_where_nothing_can_be_asked_the_first_sign_of_life_counts() -> None:
    subject = Connection(FEED, largest)
    subject.handle(machine.Started(), 0)
    subject.handle(machine.Opened(1), 0)
    assert subject.delivering_s is None
    subject.handle(machine.Frames(1, [b"x"], 1), 0.5)
    assert subject.delivering_s == 0.5


def test_the_exchanges_own_heartbeat_is_sent_and_any_frame_answers_it() -> None:
    habits = Habits(Heartbeat(client_message=b"ping", client_interval_s=20))
    subject = Connection(FEED, largest, habits)
    subject.handle(machine.Started(), 0)
    assert subject.handle(machine.Opened(1), 0) == [machine.Say(1, b"ping")]
    subject.handle(machine.Frames(1, [b"pong"], 1), 1)
    assert machine.Say(1, b"ping") in subject.handle(machine.Tick(), 20), "as often as the exchange wants it"
    subject.handle(machine.Frames(1, [b"pong"], 1), 21)
    subject.handle(machine.Tick(), 40)
    assert machine.Replace(1, "heartbeat", "no pong within 10 s") in subject.handle(machine.Tick(), 50)


def test_an_exchanges_heartbeat_frames_are_life() -> None:
    """Watchdog false alarms on thin symbols: nothing but a heartbeat for an hour."""
    subject = opened(feed=PINGS.model_copy(update={"stale_after_s": 30.0}))
    for second in range(0, 3600, 20):
        out = subject.handle(machine.Frames(1, [b"heartbeat"], 1), float(second))
        if machine.Ping(1) in out:
            subject.handle(machine.Pong(1), float(second))
    assert subject.tally.probes == 0


@pytest.mark.parametrize(
    ("every_s", "lifetime_s", "due_s", "reason"),
    [
        (14_400, None, 14_400, "schedule"),
        (14_400, 86_400, 14_400, "schedule"),
        (86_400, 86_400, 77_760, "lifetime"),
        (3_600, 3_000, 2_700, "lifetime"),
    ],
)
def test_it_is_replaced_by_age_and_well_before_the_exchange_cuts_it(
    every_s: float, lifetime_s: float | None, due_s: float, reason: str
) -> None:
    feed = Feed(stale_after_s=1e9, rotate_every_s=every_s, rotate_jitter=0)
    subject = opened(feed=feed, habits=Habits(lifetime_s=lifetime_s))
    now_s, seen = 0.0, []
    while now_s < due_s - 180:
        now_s += 180
        seen += [item for item in subject.handle(machine.Tick(), now_s) if isinstance(item, machine.Replace)]
        subject.handle(machine.Pong(1), now_s)
    assert seen == []
    assert [item.reason for item in subject.handle(machine.Tick(), due_s) if isinstance(item, machine.Replace)] == [
        reason
    ]


def test_connections_of_the_same_age_are_not_replaced_together() -> None:
    """Jitter: a hundred feeds that started in the same second."""
    dues = []
    for seed in range(100):
        chance = random.Random(seed)
        subject = Connection(Feed(stale_after_s=1e9, ping_interval_s=600), chance.uniform)
        subject.handle(machine.Started(), 0)
        subject.handle(machine.Opened(1), 0)
        now_s = 0.0
        while not any(isinstance(item, machine.Replace) for item in subject.handle(machine.Tick(), now_s)):
            subject.handle(machine.Pong(1), now_s)
            due_s = subject.due_s
            assert due_s is not None
            now_s = due_s
        dues.append(now_s)
    assert min(dues) >= 14_400 * 0.9
    assert max(dues) <= 14_400
    assert max(dues) - min(dues) > 14_400 * 0.08
    assert max(sum(1 for due in dues if start <= due < start + 60) for start in dues) < 20


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
    subject.handle(machine.Closed(3, "after a good while"), 5.0 + STABLE_AFTER_S)
    assert subject.due_s == 5.0 + STABLE_AFTER_S + 1.0


def test_an_announced_shutdown_is_told_to_the_owner_and_closes_nothing() -> None:
    subject = opened()
    (word,) = subject.handle(machine.ShutdownAnnounced(1), 1.0)
    assert word == machine.Replace(1, "shutdown", "the exchange announced a shutdown")
    assert subject.state == "open"


def test_a_close_that_is_not_confirmed_is_cut() -> None:
    subject = opened()
    assert subject.handle(machine.CloseRequested(1, "enough"), 1.0) == [machine.Close(1, "enough", cut=False)]
    (cut,) = subject.handle(machine.Tick(), 1.0 + CLOSE_TIMEOUT_S)
    assert isinstance(cut, machine.Close)
    assert cut.cut


def test_frames_that_arrive_while_closing_are_published() -> None:
    subject = opened()
    subject.handle(machine.CloseRequested(1, "enough"), 1.0)
    subject.handle(machine.Frames(1, [b"late"], 5), 1.1)
    (publish,) = subject.handle(machine.Closed(1, "bye"), 1.2)
    assert isinstance(publish, machine.Publish)
    assert publish.connection == 1
    assert publish.gathered.frames == [b"late"]


def test_a_final_connection_ends_with_its_socket_and_opens_none() -> None:
    subject = opened()
    subject.final = True
    subject.handle(machine.Frames(1, [b"last"], 5), 1.0)
    assert kinds(subject.handle(machine.Closed(1, "gone"), 1.1)) == [machine.Publish, machine.Drained]
    assert subject.handle(machine.Tick(), 1e6) == []


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
