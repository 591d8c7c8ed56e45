from typing import Any

import httpx
import pytest

from k2ray.cli import soak
from k2ray.cli.soak import CUT_AT, DAY_S, NOTICE_AT, Soak, _incidents, too_large
from k2ray.settings import load_settings
from k2ray.soak.gather import plan_of
from k2ray.soak.samples import ActorSample, Sample
from k2ray.soak.verdict import judge
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
    settings = load_settings(arguments={"memory": {"feed": {"soft_bytes": 100, "hard_bytes": 200}}}, environ={})

    def sample(size: int) -> Sample:
        writer = ActorSample("writer:trades", "writer", "running", rss_bytes=900_000_000)
        return Sample(0.0, [feed(0, rss_bytes=size), writer])

    plan = plan_of(settings, [sample(200)])
    assert too_large(plan, sample(200)) == ""
    assert "feed:binance:0" in too_large(plan, sample(201))


class _Api:
    """Answers for a system whose feed grows from question to question."""

    def __init__(self, **_: object) -> None:
        self.asked = 0

    def __enter__(self) -> "_Api":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def get(self, path: str) -> httpx.Response:
        self.asked += 1
        actor = {
            "name": "feed:binance:0#1",
            "role": "feed",
            "state": "running",
            "pid": 7,
            "rss_bytes": 100 * self.asked,
        }
        return httpx.Response(200, json={"actors": [actor]}, request=httpx.Request("GET", f"http://a{path}"))


class _Sim:
    def state(self) -> dict[str, Any]:
        return {"counters": {}, "connections": {}}


def test_a_run_ends_at_once_when_a_process_is_over_its_limit_and_the_verdict_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(soak.httpx, "Client", _Api)
    settings = load_settings(arguments={"memory": {"feed": {"soft_bytes": 100, "hard_bytes": 250}}}, environ={})
    watch = soak._Watch(Soak(hours=1, sample_s=0.01), _Sim(), settings)  # type: ignore[arg-type]
    watch.watch()
    run = watch.run()
    assert len(run.samples) == 3
    assert run.ran_s < 60
    assert "feed:binance:0 has 0 MB" in run.aborted
    verdict = judge(run)
    assert verdict.outcome == "failed"
    assert {check.name for check in verdict.checks if check.outcome == "failed"} == {"memory limit"}


def test_the_plan_follows_the_settings_and_counts_only_feeds_that_carry_something() -> None:
    settings = load_settings(arguments={"feed": {"time_compression": 720, "rotate_jitter": 0.2}}, environ={})
    idle = feed(0, name="feed:binance:1", data_age_s=None)
    plan = plan_of(settings, [Sample(0.0, [feed(0), idle]), Sample(60.0, [feed(1), idle])], 2.0)
    assert (plan.feeds, plan.rotate_every_s, plan.ping_interval_s, plan.jitter) == (1, 20.0, 0.25, 0.2)
    assert (plan.pong_timeout_s, plan.sample_interval_s) == (10.0, 2.0), "timeouts stay real"
    assert plan.hard_bytes["writer"] > plan.hard_bytes["feed"] > 0
