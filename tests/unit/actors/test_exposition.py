from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from actors.exposition import merge_metrics


def text(rows: int, age_s: float) -> str:
    registry = CollectorRegistry()
    Counter("k2ray_rows", "Rows.", ["channel"], registry=registry).labels("trades").inc(rows)
    Gauge("k2ray_age_seconds", "Age.", registry=registry).set(age_s)
    return generate_latest(registry).decode()


def test_samples_of_all_actors_stand_in_one_family_each() -> None:
    merged = merge_metrics({"feed:binance:0": text(5, 0.5), "feed:binance:1": text(7, 1.5)})
    assert merged.count("# TYPE k2ray_rows_total counter") == 1
    families = {family.name: family for family in text_string_to_metric_families(merged)}
    rows = {
        sample.labels["actor"]: sample.value
        for sample in families["k2ray_rows"].samples
        if sample.name == "k2ray_rows_total" and sample.labels["channel"] == "trades"
    }
    assert rows == {"feed:binance:0": 5.0, "feed:binance:1": 7.0}
    assert {sample.value for sample in families["k2ray_age_seconds"].samples} == {0.5, 1.5}
