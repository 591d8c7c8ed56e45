from k2ray.sim.limits import SlidingWindow


def test_a_window_forgets_what_is_older_and_never_counts_what_it_refused() -> None:
    window = SlidingWindow(2, 1.0)
    assert [window.take(at) for at in (0.0, 0.5, 0.9, 0.99)] == [True, True, False, False]
    assert [window.take(at) for at in (1.0, 1.4, 1.5)] == [True, False, True]
