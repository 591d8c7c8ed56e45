"""Takes samples of this process's memory in a thread of its own, and shows them: in health reports and as metrics.

Actors, the supervisor and the API's replicas each have one. What is resident is read anew whenever it is asked for, so
that a limit acts within a second; the trend comes from the samples.

Next in the flow: `actors/pressure.py` decides what a process's memory means.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import psutil

from k2ray import metrics
from k2ray.memory import MemoryTrend, Sample
from k2ray.settings import Memory

_STATUS = "/proc/self/status"


@dataclass(frozen=True)
class MemoryReport:
    """What a process says of its memory; plain values.

    Attributes:
        rss_bytes, vms_bytes: Now.
        store_bytes: Shared memory that is resident: objects of Ray's object store in use.
        slope_bytes_per_hour, r2, leak_score: Of the samples since the warm-up.
        samples: How many those are.
        complete: Whether they fill the window, so that the score means something.
    """

    rss_bytes: int
    vms_bytes: int
    store_bytes: int
    slope_bytes_per_hour: float = 0.0
    r2: float = 0.0
    leak_score: float = 0.0
    samples: int = 0
    complete: bool = False


class MemorySampler:
    """Samples this process.

    Args:
        settings: How often, how many.
        look: Returns RSS, VMS and resident shared memory in bytes; None asks the operating system.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        settings: Memory,
        *,
        look: Callable[[], tuple[int, int, int]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval_s = settings.sample_interval_s
        self._trend = MemoryTrend(settings.window, settings.warmup_s)
        self._process = psutil.Process()
        self._look = look or self._ask_the_system
        self._clock = clock
        self._lock = threading.Lock()

    def start(self) -> None:
        """Sample for as long as the process lives."""
        self.sample()
        threading.Thread(target=self._sample_for_ever, name="memory", daemon=True).start()

    def sample(self) -> None:
        """Take one sample."""
        rss, vms, store = self._look()
        with self._lock:
            self._trend.add(Sample(self._clock(), rss, vms, store))
        self.report()

    def report(self) -> MemoryReport:
        """Return the present state, and set the metrics to it; from any thread."""
        rss, vms, store = self._look()
        with self._lock:
            trend, complete = self._trend.trend, self._trend.complete
        metrics.ACTOR_RSS_BYTES.set(rss)
        metrics.ACTOR_VMS_BYTES.set(vms)
        metrics.ACTOR_STORE_BYTES.set(store)
        metrics.ACTOR_MEMORY_SLOPE.set(trend.bytes_per_hour)
        metrics.ACTOR_LEAK_SCORE.set(trend.leak_score if complete else 0.0)
        return MemoryReport(rss, vms, store, trend.bytes_per_hour, trend.r2, trend.leak_score, trend.samples, complete)

    def _sample_for_ever(self) -> None:
        while True:
            time.sleep(self._interval_s)
            self.sample()

    def _ask_the_system(self) -> tuple[int, int, int]:
        info = self._process.memory_info()
        return info.rss, info.vms, _resident_shared()


def _resident_shared() -> int:
    """Return the resident shared memory in bytes; 0 where the system does not say."""
    try:
        with open(_STATUS, encoding="ascii") as status:
            for line in status:
                if line.startswith("RssShmem:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def as_health(report: MemoryReport) -> dict[str, object]:
    """Return what a health report holds of it."""
    return {"rss_bytes": report.rss_bytes, "memory": asdict(report)}
