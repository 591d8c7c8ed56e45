"""What benchmarks share: results, the README's section of them, and what a soak's report says of memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import render
from benchmarks import report as reporting
from benchmarks.memory import fill_in, notes_of, rows_of
from k2ray.soak.report import as_json
from k2ray.soak.samples import SampleLog
from k2ray.soak.verdict import judge
from tests.support.runs import an_hour

README = f"# x\n{render.START}\nold\n{render.END}\ny"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(reporting, "RESULTS", tmp_path)
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    return tmp_path


def test_a_quick_run_says_so_and_takes_no_full_runs_place(results: Path) -> None:
    """Trap 28: a number whose measuring does not bear it."""
    reporting.report("heal", [{"median_s": 1.0}], "n", quick=True)
    assert "(quick run, " in render.with_results(README)
    reporting.report("heal", [{"median_s": 2.0}], "n")
    reporting.report("heal", [{"median_s": 3.0}], "n", quick=True)
    assert json.loads((results / "heal.json").read_text())["rows"] == [{"median_s": 2.0}]
    assert "quick" not in render.with_results(README)


def test_a_benchmark_that_never_ran_is_left_out(results: Path) -> None:
    assert render.with_results(README) == f"# x\n{render.START}\n\n{render.END}\ny"


def test_memory_is_what_a_soaks_report_says() -> None:
    run = an_hour()
    document = json.loads(json.dumps(as_json("soak of 1 h", run, judge(run)), allow_nan=False))
    (row,) = rows_of(document)
    assert (row["actor"], row["start_mb"], row["after_10_min_mb"], row["end_mb"]) == ("feed:binance:0", 200, 200, 200)
    assert row["at_least"] <= row["growth_mb_per_day"] <= row["at_most"]
    assert "for 60 minutes, 10 trades/s stored, verdict passed" in notes_of(document)


def test_memory_after_ten_minutes_is_found_in_the_samples_where_a_report_lacks_it(tmp_path: Path) -> None:
    run = an_hour()
    document = json.loads(json.dumps(as_json("soak of 1 h", run, judge(run)), allow_nan=False))
    del document["memory_mb"]["feed:binance:0"]["warm"]
    log = SampleLog(tmp_path)
    for minute in (0, 9, 11, 30):
        actor = {
            "name": "feed:binance:0#1",
            "role": "feed",
            "state": "running",
            "rss_bytes": (200 + minute) * 1_000_000,
        }
        log.note({"actors": [actor]}, run.since_s + 60 * minute, 60.0 * minute)
    fill_in(document, tmp_path)
    assert rows_of(document)[0]["after_10_min_mb"] == 211
    fill_in(document, tmp_path / "nothing there")


def test_memory_of_a_soak_that_was_too_short_has_no_growth() -> None:
    run = an_hour(samples=an_hour().samples[:3])
    (row,) = rows_of(json.loads(json.dumps(as_json("soak of 1 h", run, judge(run)), allow_nan=False)))
    assert (row["after_10_min_mb"], row["growth_mb_per_day"], row["at_most"]) == (None, None, None)
