from k2ray.sim.history import History


def ten_blocks() -> History:
    history = History()
    for n in range(10):
        history.append(n * 5, 5, 1000 + n)
    return history


def test_the_horizon_is_when_trades_happened() -> None:
    history = ten_blocks()
    history.forget_before(1003)
    assert (history.begin, history.end) == (15, 50)
    assert history.times(range(15, 21)) == [1003] * 5 + [1004]
    history.forget_before(1001)
    assert history.begin == 15, "what is forgotten stays so"
    history.forget_before(5000)
    assert history.begin == history.end == 50


def test_all_until_now_can_be_forgotten_and_the_ids_go_on() -> None:
    history = ten_blocks()
    history.forget()
    assert history.begin == 50
    history.append(50, 5, 1010)
    assert (history.begin, history.end) == (50, 55)
    history.clear()
    assert (history.begin, history.end) == (0, 0)


def test_a_clock_that_stepped_back_does_not_confuse_the_questions_by_time() -> None:
    history = ten_blocks()
    history.append(50, 5, 500, 1010)
    history.append(55, 5, 501, 1011)
    assert history.times([49, 50, 55]) == [1009, 500, 501]
    assert history.first_at(1004) == 20
    history.forget_before(1011)
    assert history.begin == 55
