"""Writes the dashboards' JSON from the tables below: `python ops/grafana/build.py`; a test holds both in step.

A panel is a title, a unit, and queries with their legends. Counters of a generation that leaves are summed in, its
gauges are left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"

WIDTH, HEIGHT, COLUMNS = 8, 7, 3
INSTANCE = 'instance=~"$instance"'
NOW = f'{INSTANCE}, leaving=""'


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: What it shows.
        unit: Grafana's name of the unit.
        queries: Legend -> PromQL.
        kind: Grafana's panel type.
        text: Shown behind the panel's (i).
    """

    title: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    text: str = ""


def rate(metric: str, by: str, matchers: str = "") -> str:
    """Return a summed rate."""
    more = f", {matchers}" if matchers else ""
    return f"sum by ({by}) (rate({metric}{{{INSTANCE}{more}}}[$__rate_interval]))"


def total(metric: str, by: str, matchers: str = "") -> str:
    """Return how many events there were since the processes began; a rate would hide the first one of its kind."""
    more = f", {matchers}" if matchers else ""
    return f"sum by ({by}) ({metric}{{{INSTANCE}{more}}})"


def now(metric: str, matchers: str = "") -> str:
    """Return a gauge."""
    more = f", {matchers}" if matchers else ""
    return f"{metric}{{{NOW}{more}}}"


def quantile(share: float, metric: str, by: str) -> str:
    """Return a histogram's quantile."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', f'{by}, le')})"


OVERVIEW = (
    Panel("Feeds that deliver", "short", {"ready": f"sum({now('k2ray_feed_ready')})"}, "stat"),
    Panel("Actors that run", "short", {"up": f"sum({now('k2ray_actor_up')})"}, "stat"),
    Panel("Ids missing", "short", {"ids": f"sum({now('k2ray_gap_missing_ids')})"}, "stat", "Open gaps of trades."),
    Panel(
        "Rows received",
        "cps",
        {"{{exchange}} {{channel}}": rate("k2ray_feed_rows_total", "exchange, channel")},
    ),
    Panel("Rows stored", "cps", {"{{table}}": rate("k2ray_committed_rows_total", "table")}),
    Panel(
        "Freshness",
        "s",
        {"{{table}} p{{percentile}}": now("k2ray_freshness_seconds")},
        text="Event time to commit, of the newest commits' rows.",
    ),
    Panel("Behind Kafka", "s", {"{{table}}": now("k2ray_writer_lag_seconds")}),
    Panel("Spooled", "bytes", {"{{client}}": now("k2ray_spool_bytes")}),
    Panel("Answers", "reqps", {"{{status}}": rate("k2ray_http_requests_total", "status")}),
    Panel(
        "Slowest answers (p99)",
        "s",
        {"{{route}}": quantile(0.99, "k2ray_http_seconds", "route")},
    ),
    Panel("Memory of all actors", "bytes", {"resident": f"sum({now('k2ray_actor_rss_bytes')})"}),
    Panel(
        "Alerts that fire",
        "short",
        {"{{alertname}} {{actor}}": f'ALERTS{{alertstate="firing", {INSTANCE}}}'},
        "table",
    ),
)

FEEDS = (
    Panel(
        "State", "short", {"{{actor}} {{kind}}": f"{now('k2ray_feed_connection')} == 1"}, text="The state that is 1."
    ),
    Panel("Age of the connection", "s", {"{{actor}}": now("k2ray_feed_connection_age_seconds")}),
    Panel("Since the last frame", "s", {"{{actor}}": now("k2ray_feed_data_age_seconds")}),
    Panel("Since the last pong", "s", {"{{actor}}": now("k2ray_feed_pong_age_seconds")}),
    Panel("Pings", "short", {"{{actor}} {{outcome}}": total("k2ray_feed_pings_total", "actor, outcome")}),
    Panel("Rotations", "short", {"{{actor}} {{reason}}": total("k2ray_feed_rotations_total", "actor, reason")}),
    Panel("Reconnects", "short", {"{{actor}}": total("k2ray_feed_reconnects_total", "actor")}),
    Panel("Connects", "short", {"{{actor}} {{outcome}}": total("k2ray_feed_connects_total", "actor, outcome")}),
    Panel("Silence probed", "short", {"{{actor}}": total("k2ray_feed_stale_probes_total", "actor")}),
    Panel("Frames", "cps", {"{{actor}}": rate("k2ray_feed_frames_total", "actor")}),
    Panel("Bytes", "Bps", {"{{actor}}": rate("k2ray_feed_bytes_total", "actor")}),
    Panel(
        "Rows",
        "cps",
        {"{{exchange}} {{channel}} {{symbol_class}}": rate("k2ray_feed_rows_total", "exchange, channel, symbol_class")},
    ),
    Panel("Frames that nobody subscribed", "cps", {"{{actor}}": rate("k2ray_feed_ignored_frames_total", "actor")}),
    Panel(
        "Dead letters",
        "short",
        {"{{exchange}} {{source}} {{cause}}": total("k2ray_dead_letters_total", "exchange, source, cause")},
    ),
    Panel("Confirmed by Kafka", "cps", {"{{topic}}": rate("k2ray_produced_rows_total", "topic")}),
    Panel(
        "Time to Kafka's confirmation",
        "s",
        {
            "{{client}} p50": quantile(0.5, "k2ray_produce_seconds", "client"),
            "{{client}} p99": quantile(0.99, "k2ray_produce_seconds", "client"),
        },
    ),
    Panel("Not confirmed yet", "bytes", {"{{client}}": now("k2ray_produce_queue_bytes")}),
    Panel("Refused by Kafka", "short", {"{{topic}}": total("k2ray_produce_failures_total", "topic")}),
    Panel(
        "Spool",
        "bytes",
        {"{{client}}": now("k2ray_spool_bytes"), "{{client}} limit": now("k2ray_spool_limit_bytes")},
    ),
    Panel("Rows shed", "short", {"{{topic}}": total("k2ray_shed_rows_total", "topic")}),
    Panel("Open gaps", "short", {"{{table}}": now("k2ray_open_gaps")}),
    Panel("Ids missing", "short", {"{{exchange}}": now("k2ray_gap_missing_ids")}),
    Panel("Oldest gap", "s", {"{{exchange}}": now("k2ray_gap_oldest_seconds")}),
    Panel("What became of gaps", "short", {"{{exchange}} {{kind}}": total("k2ray_gaps_total", "exchange, kind")}),
    Panel(
        "Backfill's questions",
        "short",
        {"{{exchange}} {{outcome}}": total("k2ray_backfill_calls_total", "exchange, outcome")},
    ),
    Panel("Rows fetched", "cps", {"{{exchange}}": rate("k2ray_backfill_rows_total", "exchange")}),
    Panel("Request weight left", "short", {"{{exchange}}": now("k2ray_backfill_weight_left")}),
    Panel("Left of the exchange's limits", "short", {"{{exchange}} {{resource}}": now("k2ray_exchange_budget_left")}),
    Panel("Banned", "s", {"{{exchange}} {{resource}}": now("k2ray_exchange_banned_seconds")}),
    Panel("Told to wait", "s", {"{{exchange}}": now("k2ray_backfill_banned_seconds")}),
)

LAKE = (
    Panel("Rows stored", "cps", {"{{table}}": rate("k2ray_committed_rows_total", "table")}),
    Panel("Duplicates dropped", "cps", {"{{table}}": rate("k2ray_duplicate_rows_total", "table")}),
    Panel("Unstorable", "short", {"{{table}}": total("k2ray_unstorable_records_total", "table")}),
    Panel(
        "Commit",
        "s",
        {
            "{{table}} p50": quantile(0.5, "k2ray_commit_seconds", "table"),
            "{{table}} p90": quantile(0.9, "k2ray_commit_seconds", "table"),
        },
    ),
    Panel("Oldest row waits", "s", {"{{table}}": now("k2ray_commit_wait_seconds")}),
    Panel("Freshness", "s", {"{{table}} p{{percentile}}": now("k2ray_freshness_seconds")}),
    Panel("Behind Kafka", "short", {"{{table}}": now("k2ray_writer_lag_trades")}, text="Rows."),
    Panel("Behind Kafka in time", "s", {"{{table}}": now("k2ray_writer_lag_seconds")}),
    Panel("Tried again", "short", {"{{table}} {{reason}}": total("k2ray_writer_retries_total", "table, reason")}),
    Panel(
        "What should not happen",
        "short",
        {
            "{{table}} fenced": total("k2ray_worlds_moved_total", "table"),
            "{{table}} {{kind}} in Kafka": total("k2ray_offset_jumps_total", "table, kind"),
            "{{table}} {{kind}}": total("k2ray_ledger_events_total", "table, kind"),
        },
    ),
    Panel(
        "Files",
        "short",
        {"{{table}}": now("k2ray_table_files"), "{{table}} small": now("k2ray_table_small_files")},
    ),
    Panel(
        "Snapshots",
        "short",
        {"{{table}}": now("k2ray_table_snapshots"), "{{table}} leased": now("k2ray_leased_snapshots")},
    ),
    Panel("Metadata", "bytes", {"{{table}}": now("k2ray_table_metadata_bytes")}),
    Panel("Compactions", "short", {"{{table}} {{outcome}}": total("k2ray_compactions_total", "table, outcome")}),
    Panel("Rows compacted", "cps", {"{{table}}": rate("k2ray_compacted_rows_total", "table")}),
    Panel("Snapshots expired", "short", {"{{table}}": total("k2ray_snapshots_expired_total", "table")}),
    Panel("Leases dropped", "short", {"{{table}}": total("k2ray_leases_dropped_total", "table")}),
    Panel("Orphans removed", "short", {"{{table}} {{kind}}": total("k2ray_orphans_removed_total", "table, kind")}),
    Panel("A look of upkeep (p90)", "s", {"{{table}}": quantile(0.9, "k2ray_upkeep_seconds", "table")}),
    Panel("Disk left", "bytes", {"{{place}}": now("k2ray_disk_free_bytes")}),
    Panel("Files read for answers", "cps", {"files": rate("k2ray_query_files_total", "instance")}),
    Panel("Rows in answers", "cps", {"rows": rate("k2ray_query_rows_total", "instance")}),
)

SYSTEM = (
    Panel("Runs", "short", {"{{actor}}": now("k2ray_actor_up")}, text="1 while it runs and answers."),
    Panel("Given up", "short", {"{{actor}}": now("k2ray_actor_failed")}),
    Panel("Restarts", "short", {"{{actor}} {{reason}}": f"{now('k2ray_actor_restarts')} > 0"}, text="Since the start."),
    Panel(
        "Replacements",
        "short",
        {"{{actor}} {{reason}} {{outcome}}": f"{now('k2ray_actor_replacements')} > 0"},
        text="Planned, make before break.",
    ),
    Panel("Being replaced", "short", {"{{actor}}": now("k2ray_actor_replacing")}),
    Panel("Resident memory", "bytes", {"{{actor}}": now("k2ray_actor_rss_bytes")}),
    Panel(
        "Share of the soft limit",
        "percentunit",
        {
            "{{actor}}": f"{now('k2ray_actor_rss_bytes')} / on (instance, actor) "
            + now("k2ray_actor_memory_limit_bytes", 'limit="soft"')
        },
    ),
    Panel("Growth an hour", "bytes", {"{{actor}}": now("k2ray_actor_memory_slope_bytes_per_hour")}),
    Panel("Leak score", "short", {"{{actor}}": now("k2ray_actor_leak_score")}, text="Above 0.8 it is replaced."),
    Panel("Virtual memory", "bytes", {"{{actor}}": now("k2ray_actor_vms_bytes")}),
    Panel("Object store", "bytes", {"{{actor}}": now("k2ray_actor_object_store_bytes")}),
    Panel("CPU", "percentunit", {"{{actor}}": rate("process_cpu_seconds_total", "actor")}),
    Panel("Open files", "short", {"{{actor}}": now("process_open_fds")}),
    Panel("Age of the metrics", "s", {"{{actor}}": now("k2ray_metrics_age_seconds")}),
    Panel("The supervisor answers", "short", {"{{actor}}": now("k2ray_supervisor_up")}),
    Panel("Answers by route", "reqps", {"{{route}}": rate("k2ray_http_requests_total", "route")}),
    Panel("Schemas kept", "short", {"{{actor}} {{cache}}": now("k2ray_schema_cache_schemas")}),
    Panel(
        "Schemas found and fetched",
        "cps",
        {
            "{{actor}} {{cache}} hits": rate("k2ray_schema_cache_hits_total", "actor, cache"),
            "{{actor}} {{cache}} misses": rate("k2ray_schema_cache_misses_total", "actor, cache"),
        },
    ),
    Panel(
        "Schemas evicted",
        "short",
        {"{{actor}} {{cache}}": total("k2ray_schema_cache_evictions_total", "actor, cache")},
    ),
    Panel("Sent as Arrow for want of a schema", "cps", {"{{topic}}": rate("k2ray_wire_fallback_rows_total", "topic")}),
    Panel("Kafka asked for its ends", "cps", {"{{actor}}": rate("k2ray_broker_questions_total", "actor")}),
    Panel(
        "Ray: actors by state", "short", {"{{State}}": "sum by (State) (ray_actors)"}, text="Scraped from Ray itself."
    ),
    Panel("Ray: memory of the nodes", "bytes", {"{{instance}}": "sum by (instance) (ray_node_mem_used)"}),
    Panel("Ray: k2ray's actors", "short", {"{{actor}}": "ray_k2ray_actor_up"}),
)

DASHBOARDS = {
    "overview": ("k2ray: overview", OVERVIEW),
    "feeds": ("k2ray: feeds and gaps", FEEDS),
    "lake": ("k2ray: lake", LAKE),
    "system": ("k2ray: actors, memory, Ray", SYSTEM),
}


def dashboard(name: str) -> dict[str, Any]:
    """Return a dashboard as Grafana reads it."""
    title, panels = DASHBOARDS[name]
    return {
        "uid": f"k2ray-{name}",
        "title": title,
        "tags": ["k2ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "links": [{"type": "dashboards", "tags": ["k2ray"], "title": "k2ray", "asDropdown": False, "keepTime": True}],
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus", "hide": 0}
    query = "label_values(k2ray_supervisor_up, instance)"
    instance = {
        "name": "instance",
        "label": "System",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": "instance"},
        "definition": query,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }
    return [source, instance]


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS)
    found: dict[str, Any] = {
        "id": number + 1,
        "title": panel.title,
        "type": panel.kind,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "expr": expression,
                "legendFormat": legend,
                "range": panel.kind != "table",
                "instant": panel.kind == "table",
            }
            for index, (legend, expression) in enumerate(panel.queries.items())
        ],
    }
    if panel.text:
        found["description"] = panel.text
    return found


def text(name: str) -> str:
    """Return a dashboard's JSON as it is on disk."""
    return json.dumps(dashboard(name), indent=1) + "\n"


if __name__ == "__main__":
    for each in DASHBOARDS:
        (FOLDER / f"{each}.json").write_text(text(each), encoding="utf-8")
