from __future__ import annotations

import mmap
import sys

import pytest
from prometheus_client import REGISTRY

from actors.sampling import MemorySampler, as_health
from k2ray.memory import MB
from k2ray.settings import Memory
from tests.support.eventually import eventually


class Process:
    """Memory and time as told."""

    def __init__(self) -> None:
        self.rss_mb = 200.0
        self.now_s = 0.0

    def look(self) -> tuple[int, int, int]:
        return int(self.rss_mb * MB), 1_000 * MB, 5 * MB


def sampler(process: Process, **settings: float) -> MemorySampler:
    return MemorySampler(Memory.model_validate(settings), look=process.look, clock=lambda: process.now_s)


def test_a_leak_of_100_mb_an_hour_shows_in_the_report_and_in_every_metric() -> None:
    process = Process()
    found = sampler(process, window=120, warmup_s=600)
    for _ in range(141):
        found.sample()
        process.now_s += 30
        process.rss_mb += 100 / 120
    report = found.report()
    assert report.complete
    assert report.samples == 120
    assert report.slope_bytes_per_hour == pytest.approx(100 * MB, rel=0.001)
    assert report.leak_score == pytest.approx(1.0, abs=0.001)
    assert REGISTRY.get_sample_value("k2ray_actor_rss_bytes") == int(process.rss_mb * MB)
    assert REGISTRY.get_sample_value("k2ray_actor_vms_bytes") == 1_000 * MB
    assert REGISTRY.get_sample_value("k2ray_actor_object_store_bytes") == 5 * MB
    slope = REGISTRY.get_sample_value("k2ray_actor_memory_slope_bytes_per_hour")
    assert slope == pytest.approx(100 * MB, rel=0.001)
    assert REGISTRY.get_sample_value("k2ray_actor_leak_score") == pytest.approx(1.0, abs=0.001)


def test_limits_see_the_present_and_not_the_last_sample() -> None:
    process = Process()
    found = sampler(process)
    found.sample()
    process.rss_mb = 900
    assert as_health(found.report())["rss_bytes"] == 900 * MB


def test_a_score_of_half_a_window_is_not_shown() -> None:
    process = Process()
    found = sampler(process, window=120, warmup_s=0)
    for _ in range(60):
        found.sample()
        process.now_s += 30
        process.rss_mb += 10
    assert not found.report().complete
    assert REGISTRY.get_sample_value("k2ray_actor_leak_score") == 0.0


def test_this_process_is_sampled_in_a_thread() -> None:
    found = MemorySampler(Memory(sample_interval_s=0.01, warmup_s=0))
    found.start()
    eventually(lambda: found.report().samples >= 5, "samples are taken")
    report = found.report()
    assert report.rss_bytes > 20 * MB
    assert report.vms_bytes > report.rss_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells shared memory apart")
def test_shared_memory_in_use_is_counted() -> None:
    found = MemorySampler(Memory())
    before = found.report().store_bytes
    with mmap.mmap(-1, 50 * MB) as shared:  # anonymous and shared, as the object store's is
        for page in range(0, 50 * MB, mmap.PAGESIZE):
            shared[page] = 1
        assert found.report().store_bytes - before > 49 * MB
