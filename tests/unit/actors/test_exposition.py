from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from actors.exposition import merge_metrics


def text(rows: int, age_s: float) -> str:
    registry = CollectorRegistry()
    Counter("k2ray_rows", "Rows.", ["channel"], registry=registry).labels("trades").inc(rows)
    Gauge("k2ray_age_seconds", "Age.", registry=registry).set(age_s)
    Histogram("k2ray_wait_seconds", "Wait.", registry=registry, buckets=(1, 2)).observe(age_s)
    return generate_latest(registry).decode()


def samples(merged: str, name: str) -> dict[str, float]:
    """Return actor (with a mark if it leaves) -> value of one sample."""
    return {
        sample.labels["actor"] + ("!" if "leaving" in sample.labels else ""): sample.value
        for family in text_string_to_metric_families(merged)
        for sample in family.samples
        if sample.name == name
    }


def test_samples_of_all_actors_stand_in_one_family_each() -> None:
    merged = merge_metrics({"feed:binance:0": text(5, 0.5), "feed:binance:1": text(7, 1.5)})
    assert merged.count("# TYPE k2ray_rows_total counter") == 1
    assert samples(merged, "k2ray_rows_total") == {"feed:binance:0": 5.0, "feed:binance:1": 7.0}
    assert samples(merged, "k2ray_age_seconds") == {"feed:binance:0": 0.5, "feed:binance:1": 1.5}
    assert samples(merged, "k2ray_wait_seconds_count") == {"feed:binance:0": 1.0, "feed:binance:1": 1.0}
    assert "_created" not in merged


def test_a_generation_that_leaves_does_not_share_its_successors_series() -> None:
    merged = merge_metrics({"feed:binance:0": text(5, 0.5), "feed:binance:0#7": text(900, 1.5)})
    assert samples(merged, "k2ray_rows_total") == {"feed:binance:0": 5.0, "feed:binance:0!": 900.0}
    assert "#7" not in merged, "generations would be new series for ever"


def test_who_speaks_of_others_keeps_their_names() -> None:
    registry = CollectorRegistry()
    up = Gauge("k2ray_actor_up", "Up.", ["actor"], registry=registry)
    up.labels("writer:trades").set(1)
    merged = merge_metrics({"supervisor": generate_latest(registry).decode()})
    assert samples(merged, "k2ray_actor_up") == {"writer:trades": 1.0}


def test_an_unreadable_text_costs_nobody_else() -> None:
    merged = merge_metrics({"feed:binance:0": 'k2ray_rows_total{channel="', "feed:binance:1": text(7, 1.5)})
    assert samples(merged, "k2ray_rows_total") == {"feed:binance:1": 7.0}


def test_another_releases_type_of_the_same_name_is_left_out() -> None:
    old = "# TYPE k2ray_rows gauge\nk2ray_rows 3\n"
    new = "# TYPE k2ray_rows untyped\nk2ray_rows 4\n"
    assert samples(merge_metrics({"a": old, "b": new}), "k2ray_rows") == {"a": 3.0}
