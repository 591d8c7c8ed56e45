from pathlib import Path
from typing import Any

import pytest

from k2ray.soak.samples import DAYS_KEPT, SampleLog, read_samples, sample_of

NOON = 1_795_435_200.0
DAY = 86_400.0


def status(rss: int = 100) -> dict[str, Any]:
    return {
        "actors": [
            {
                "name": "feed:binance:0#3",
                "role": "feed",
                "generation": 3,
                "state": "running",
                "pid": 17,
                "restarts": 1,
                "restarts_by": {"memory": 1, "crash": 0},
                "rss_bytes": rss,
                "rate": 12.34567,
                "lag_trades": None,
                "memory": {"vms_bytes": 5, "store_bytes": 6, "slope": 1},
                "detail": {"rotations": {"schedule": 2, "stale": 0}, "reconnects": 1, "pong_age_s": 3.0},
            },
            {"name": "writer:trades#1", "role": "writer", "state": "starting", "detail": {"freshness_p99_s": 1.5}},
        ],
        "gaps": [
            {"first_id": 10, "last_id": 14, "sealed": False},
            {"first_id": 20, "last_id": 20, "sealed": True},
        ],
    }


def test_a_sample_keeps_what_a_verdict_needs() -> None:
    sample = sample_of(status(), NOON, pings=4)
    feed, writer = sample.actors
    assert (feed.name, feed.generation, feed.pid, feed.rss_bytes, feed.vms_bytes) == ("feed:binance:0", 3, 17, 100, 5)
    assert (feed.rotations, feed.reconnects, feed.pong_age_s, feed.rate) == ({"schedule": 2}, 1, 3.0, 12.346)
    assert (feed.restarts, feed.restarts_by) == (1, {"memory": 1})
    assert (writer.state, writer.freshness_s, writer.rss_bytes) == ("starting", 1.5, None)
    assert (sample.gaps, sample.gap_ids, sample.pings) == (1, 5, 4)


def test_the_apis_replicas_are_sampled_like_actors() -> None:
    """They may leak as well, and nobody else looks at them."""
    replicas = [{"name": "api:0", "pid": 21, "rss_bytes": 300}]
    *_, replica = sample_of({**status(), "replicas": replicas}, NOON).actors
    assert (replica.name, replica.role, replica.pid, replica.rss_bytes) == ("api:0", "api", 21, 300)


def test_samples_are_written_once_an_interval_and_read_back_by_time(tmp_path: Path) -> None:
    log = SampleLog(tmp_path)
    written = [log.note(status(n), NOON + n, float(n)) for n in range(0, 200, 20)]
    assert written == [True, False, False, True, False, False, True, False, False, True]
    found = read_samples(tmp_path, NOON + 10, NOON + 130)
    assert [sample.actors[0].rss_bytes for sample in found] == [60, 120]
    assert found[0] == sample_of(status(60), NOON + 60)


def test_a_line_that_a_crash_cut_off_costs_only_itself(tmp_path: Path) -> None:
    SampleLog(tmp_path).note(status(1), NOON, 0.0)
    (file,) = tmp_path.iterdir()
    with file.open("ab") as out:
        out.write(b'{"at_s": 17954')
        out.write(b"\n")
    SampleLog(tmp_path).note(status(2), NOON + 60, 0.0)
    assert [sample.at_s for sample in read_samples(tmp_path, 0, NOON * 2)] == [NOON, NOON + 60]


def test_a_period_may_span_days_and_old_days_go(tmp_path: Path) -> None:
    log = SampleLog(tmp_path)
    for day in range(DAYS_KEPT + 10):
        log.note(status(day), NOON + day * DAY, day * DAY)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert len(files) == DAYS_KEPT + 1
    last = NOON + (DAYS_KEPT + 9) * DAY
    assert len(read_samples(tmp_path, last - 2 * DAY, last)) == 3


def test_a_full_disk_is_the_callers_to_hear_of_and_is_not_tried_again_at_once(tmp_path: Path) -> None:
    log = SampleLog(tmp_path / "gone")
    with pytest.raises(OSError):
        log.note(status(), NOON, 0.0)
    assert not log.note(status(), NOON + 1, 1.0)
