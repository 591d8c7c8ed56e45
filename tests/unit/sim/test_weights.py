import pytest

from k2ray.sim.weights import BANNED, LONGEST_BAN_S, REFUSALS_BEFORE_BAN, TOO_MUCH, Weights, weight_of

ME, YOU = "127.0.0.1", "127.0.0.2"


@pytest.mark.parametrize(
    ("path", "query", "weight"),
    [
        ("historicalTrades", {}, 25),
        ("trades", {}, 25),
        ("aggTrades", {}, 4),
        ("exchangeInfo", {}, 20),
        ("depth", {}, 5),
        ("depth", {"limit": "100"}, 5),
        ("depth", {"limit": "500"}, 25),
        ("depth", {"limit": "1000"}, 50),
        ("depth", {"limit": "5000"}, 250),
        ("depth", {"limit": "x"}, 5),
        ("ticker/24hr", {"symbols": '["A","B"]'}, 2),
        ("ticker/24hr", {"symbols": ",".join("A" * 21)}, 40),
        ("ticker/24hr", {}, 80),
        ("nothing", {}, 1),
    ],
)
def test_questions_cost_what_the_exchange_says(path: str, query: dict[str, str], weight: int) -> None:
    assert weight_of(f"/api/v3/{path}", query) == weight


def test_past_the_minutes_weight_comes_429_until_the_minute_is_over() -> None:
    weights = Weights(100, 120)
    assert [weights.charge(ME, 25, 10.0).used for _ in range(4)] == [25, 50, 75, 100]
    refused = weights.charge(ME, 25, 10.0)
    assert (refused.status, refused.retry_after_s) == (TOO_MUCH, 50)
    assert weights.charge(YOU, 25, 10.0).status is None, "another address has its own account"
    after = weights.charge(ME, 25, 10.0 + refused.retry_after_s)
    assert (after.status, after.used) == (None, 25)


def test_going_on_after_429_is_a_ban_that_doubles() -> None:
    weights = Weights(100, 120)

    def provoke(now_s: float) -> int:
        weights.charge(ME, 101, now_s)
        answers = [weights.charge(ME, 1, now_s) for _ in range(REFUSALS_BEFORE_BAN + 1)]
        assert [answer.status for answer in answers[:-1]] == [TOO_MUCH] * REFUSALS_BEFORE_BAN
        assert answers[-1].status == BANNED
        assert weights.charge(ME, 1, now_s + answers[-1].retry_after_s - 1).status == BANNED
        return answers[-1].retry_after_s

    bans = [provoke(1_000_000.0 * number) for number in range(14)]
    assert bans[:3] == [120, 240, 480]
    assert bans[-1] == LONGEST_BAN_S


def test_a_refusal_on_request_holds_for_everybody_until_its_end() -> None:
    weights = Weights(100, 120)
    weights.refuse(BANNED, 60.0)
    assert [weights.charge(who, 1, 20.5).status for who in (ME, YOU)] == [BANNED, BANNED]
    assert weights.charge(ME, 1, 20.5).retry_after_s == 40
    assert weights.charge(ME, 1, 60.0).status is None
    weights.refuse(TOO_MUCH, 90.0)
    weights.forgive()
    assert weights.charge(ME, 1, 61.0).status is None
