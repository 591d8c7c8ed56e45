import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from k2ray.soak.evidence import Hole
from k2ray.soak.plots import plot
from k2ray.soak.report import as_html, as_json, write_report
from k2ray.soak.samples import Sample
from k2ray.soak.verdict import Run, judge
from tests.support.runs import SINCE, an_hour, evidence, feed


class Page(HTMLParser):
    """Collects tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {"src", "href", "onload"} & {name for name, _ in attrs}, "the page needs nothing from elsewhere"

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_shows_all_plots_and_needs_no_network() -> None:
    run = an_hour()
    page = Page(as_html("soak of 1 h", run, judge(run)))
    assert {"script", "link", "img"}.isdisjoint(page.tags)
    for title in ("Memory of each actor", "Rows stored", "Lag", "Freshness", "Rotations", "Open gaps"):
        assert title in page.text
    assert "soak of 1 h: passed" in page.text
    assert "ran 1 h of 1 h" in page.text


def test_a_soak_was_declared_done_without_having_run(tmp_path: Path) -> None:
    """Trap 28: results declared without having run."""
    run = an_hour(until_s=SINCE + 1200, aborted="interrupted")
    as_data, page = write_report(tmp_path / "new", "soak of 1 h", run, judge(run))
    data = json.loads(as_data.read_text())
    assert (data["verdict"], data["asked_s"], data["ran_s"], data["aborted"]) == (
        "not proven",
        3600.0,
        1200.0,
        "interrupted",
    )
    assert "ran 20 min of 1 h asked; ended early: interrupted" in Page(page.read_text()).text


def test_unknown_growth_is_null_and_not_infinity() -> None:
    run = Run(SINCE, SINCE + 60, 3600, an_hour().plan, an_hour().samples[:2])
    text = json.dumps(as_json("x", run, judge(run)), allow_nan=False)
    assert json.loads(text)["growth_mb_per_day"]["feed:binance:0"]["mb_per_day"] is None


def test_memory_is_told_at_the_start_after_the_warm_up_at_the_end_and_at_its_most() -> None:
    run = an_hour()
    assert as_json("x", run, judge(run))["memory_mb"]["feed:binance:0"] == {
        "first": 200.0,
        "warm": 200.0,
        "last": 200.0,
        "most": 200.0,
    }
    short = dataclasses.replace(run, samples=run.samples[:3])
    assert as_json("x", short, judge(short))["memory_mb"]["feed:binance:0"]["warm"] is None


def test_a_page_tells_each_actors_growth_and_restarts_and_which_ids_are_missing() -> None:
    run = an_hour(evidence=[evidence(missing=3, holes=[Hole("binance", "BTCUSDT", "#2", 7, 9)])])
    again = [Sample(one.at_s, [feed(n, restarts=n // 30, pid=10 + n // 30)]) for n, one in enumerate(run.samples)]
    run = dataclasses.replace(run, samples=again)
    verdict = judge(run)
    text = Page(as_html("x", run, verdict)).text
    assert "feed:binance:032200200200200" in text, "processes, restarts, MB"
    assert "binanceBTCUSDT#27 to 9trades" in text
    data = as_json("x", run, verdict)
    assert (data["restarts"], data["reconnects"]) == ({"feed:binance:0": 2}, 0)
    long = an_hour()
    assert (
        f"MB in 24 h ({judge(long).growth['feed:binance:0'].low:.1f} to" in Page(as_html("x", long, judge(long))).text
    )


def test_names_cannot_break_out_of_the_page() -> None:
    run = dataclasses.replace(an_hour(), aborted="<script>alert(1)</script>")
    assert "<script>" not in as_html("<b>", run, judge(run))


def test_a_plot_is_an_image_with_every_point_in_its_frame() -> None:
    svg = re.search(r"<svg.*</svg>", plot("Memory", "MB", {"a": [(0.0, 1.0), (60.0, 90.0)], "b": [(30.0, 5.0)]}))
    assert svg is not None
    tree = ElementTree.fromstring(svg[0])
    lines = [line.attrib["points"] for line in tree.iter("polyline")]
    points = [tuple(map(float, point.split(","))) for line in lines for point in line.split()]
    assert len(points) == 3
    assert all(70 <= x <= 848 and 10 <= y <= 196 for x, y in points)
    assert points[0][1] > points[1][1], "more is higher"
    assert len(list(tree.iter("circle"))) == 1, "a single point can be seen"


def test_a_plot_without_values_says_so() -> None:
    assert "nothing was recorded" in plot("Lag", "rows", {"a": [], "b": [(1.0, float("nan"))]})
