"""Frames wait for company, but not for long, and keep the time of their read."""

from __future__ import annotations

from k2ray.feed.gather import FLUSH_FRAMES, LOADED_FRAMES, Gather


def test_nothing_held_is_never_due() -> None:
    gather = Gather(0.02, 0.25)
    gather.add([], 1, 0.0)
    assert gather.due_s is None
    assert gather.take() is None


def test_the_wait_shortens_with_the_load() -> None:
    gather = Gather(0.02, 0.25)
    gather.add([b"x"], 1, 10.0)
    assert gather.due_s == 10.25
    gather.add([b"x"] * (LOADED_FRAMES - 1), 2, 10.01)
    assert gather.due_s == 10.02
    gather.add([b"x"] * (FLUSH_FRAMES - LOADED_FRAMES), 3, 10.015)
    assert gather.due_s == 10.0


def test_each_frame_keeps_its_reads_time() -> None:
    gather = Gather(0.02, 0.25)
    gather.add([b"a", b"b"], 100, 0.0)
    gather.add([b"c"], 200, 0.1)
    taken = gather.take()
    assert taken is not None
    assert (taken.frames, taken.received_us.tolist()) == ([b"a", b"b", b"c"], [100, 100, 200])
    assert len(gather) == 0
    gather.add([b"d"], 300, 5.0)
    assert gather.due_s == 5.25
