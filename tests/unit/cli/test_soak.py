import pytest

from k2ray.cli.soak import CUT_AT, DAY_S, NOTICE_AT, Soak, _incidents, too_large
from k2ray.soak.gather import plan_of
from k2ray.soak.samples import ActorSample, Sample
from tests.support.runs import feed


@pytest.mark.parametrize(
    ("wish", "incidents"),
    [
        (Soak(hours=1), []),
        (Soak(hours=24, compress=720), [(NOTICE_AT * 120, "shutdown notice")]),
        (
            Soak(hours=24, compress=720, quotes=False),
            [(CUT_AT * 120, "24 h cut"), (NOTICE_AT * 120, "shutdown notice")],
        ),
        (Soak(hours=36), [(NOTICE_AT * DAY_S, "shutdown notice")]),
    ],
)
def test_each_day_of_the_exchange_has_its_incidents(wish: Soak, incidents: list[tuple[float, str]]) -> None:
    assert _incidents(wish) == [(pytest.approx(at), what) for at, what in incidents]


def test_compression_shortens_the_run_and_nothing_else() -> None:
    assert (Soak(hours=24, compress=720).seconds, Soak(hours=2).seconds) == (120, 7200)


def test_a_process_above_its_roles_limit_ends_the_run() -> None:
    from k2ray.settings import load_settings

    settings = load_settings(arguments={"memory": {"feed": {"soft_bytes": 100, "hard_bytes": 200}}}, environ={})

    def sample(size: int) -> Sample:
        writer = ActorSample("writer:trades", "writer", "running", rss_bytes=900_000_000)
        return Sample(0.0, [feed(0, rss_bytes=size), writer])

    plan = plan_of(settings, [sample(200)])
    assert too_large(plan, sample(200)) == ""
    assert "feed:binance:0" in too_large(plan, sample(201))


def test_the_plan_follows_the_settings_and_counts_only_feeds_that_carry_something() -> None:
    from k2ray.settings import load_settings

    settings = load_settings(arguments={"feed": {"time_compression": 720, "rotate_jitter": 0.2}}, environ={})
    idle = feed(0, name="feed:binance:1", data_age_s=None)
    plan = plan_of(settings, [Sample(0.0, [feed(0), idle]), Sample(60.0, [feed(1), idle])], 2.0)
    assert (plan.feeds, plan.rotate_every_s, plan.ping_interval_s, plan.jitter) == (1, 20.0, 0.25, 0.2)
    assert (plan.pong_timeout_s, plan.sample_interval_s) == (10.0, 2.0), "timeouts stay real"
    assert plan.hard_bytes["writer"] > plan.hard_bytes["feed"] > 0
