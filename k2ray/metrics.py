"""Every metric that k2ray exports, one block a module; docs list them, and each has a test that makes it move.

One rule for names, held by a test: `k2ray_<part>_<what>[_<unit>]`. The unit is a base unit (`seconds`, `bytes`,
`ratio`) and absent where things are counted; counters are named without `_total`, which prometheus-client adds; an age
or a delay is `_seconds`, a moment is never exported. Labels come from `LABELS`: each has few values for the life of a
system, so no symbol, no generation, no pid and no free text is a label. An actor's own metrics get the label `actor`
when they are collected (`actors/exposition.py`); only who speaks of others, the supervisor, sets it.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

LABELS = {
    "actor": "Logical name, without the generation: `feed:binance:0`, `writer:trades`.",
    "cache": "`readers`, `ids`; the serializer's: `registry`, `registry_ids`.",
    "cause": "Why something was put aside: `malformed`, `unknown`, `out_of_range`, `refused`.",
    "channel": "`trades`, `quotes`, as in the settings.",
    "client": "Logical name of the actor whose Kafka client it is.",
    "exchange": "`binance`.",
    "feed": "Index of a feed of its exchange.",
    "kind": "Of an event: each metric says which.",
    "limit": "`soft`, `hard`.",
    "outcome": "Of an attempt: each metric says which.",
    "place": "`data_dir`, `warehouse`.",
    "percentile": "`50`, `99`: so many rows in a hundred are below.",
    "reason": "Why, one of a fixed list: each metric says which.",
    "resource": "What an exchange limits: `connects`, `weight`.",
    "role": "First part of an actor's name.",
    "route": "Of the HTTP API, never the URL.",
    "source": "`feed` or the topic's name: who met it.",
    "status": "HTTP status.",
    "symbol_class": "Asset class of the symbols, such as `crypto`; symbols themselves would be thousands of series.",
    "table": "`trades`, `quotes`.",
    "topic": "Kafka topic.",
}
"""Every label that a metric may have."""

# log/producer.py
PRODUCED_ROWS = Counter("k2ray_produced_rows", "Rows that Kafka has confirmed.", ["topic"])
PRODUCE_FAILURES = Counter("k2ray_produce_failures", "Records that Kafka did not take in time.", ["topic"])
PRODUCE_QUEUE_BYTES = Gauge("k2ray_produce_queue_bytes", "Bytes sent to Kafka and not yet confirmed.", ["client"])
SPOOL_BYTES = Gauge("k2ray_spool_bytes", "Bytes on disk that wait for Kafka.", ["client"])
PRODUCE_SECONDS = Histogram(
    "k2ray_produce_seconds",
    "Seconds from a record's way into the client to Kafka's confirmation.",
    ["client"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
SPOOL_LIMIT_BYTES = Gauge("k2ray_spool_limit_bytes", "Bytes that the spool may take before rows are shed.", ["client"])
SHED_ROWS = Counter("k2ray_shed_rows", "Rows given up since the spool was full.", ["topic"])
DEAD_LETTERS = Counter(
    "k2ray_dead_letters", "Frames and records put aside with their raw bytes.", ["exchange", "source", "cause"]
)

# wire/cache.py
SCHEMA_CACHE_SIZE = Gauge("k2ray_schema_cache_schemas", "Schemas that the process keeps.", ["cache"])
SCHEMA_CACHE_HITS = Counter("k2ray_schema_cache_hits", "Schemas that were there when asked for.", ["cache"])
SCHEMA_CACHE_MISSES = Counter("k2ray_schema_cache_misses", "Schemas that had to be fetched.", ["cache"])
SCHEMA_CACHE_EVICTIONS = Counter("k2ray_schema_cache_evictions", "Schemas that went since others came.", ["cache"])

# wire/encoder.py
WIRE_FALLBACK_ROWS = Counter(
    "k2ray_wire_fallback_rows", "Rows sent as Arrow since their Avro schema has no id yet.", ["topic"]
)

# log/lag.py
BROKER_QUESTIONS = Counter("k2ray_broker_questions", "Times that Kafka was asked for a partition's end.")

# feed/session.py
FEED_FRAMES = Counter("k2ray_feed_frames", "Frames received.", ["exchange", "feed"])
FEED_BYTES = Counter("k2ray_feed_bytes", "Bytes of frames received.", ["exchange", "feed"])
FEED_ROWS = Counter("k2ray_feed_rows", "Rows handed to the producer.", ["exchange", "feed", "channel", "symbol_class"])
FEED_IGNORED = Counter("k2ray_feed_ignored_frames", "Frames of streams that nobody subscribed.", ["exchange", "feed"])
FEED_CONNECTS = Counter("k2ray_feed_connects", "Attempts to connect, by outcome.", ["exchange", "feed", "outcome"])
FEED_DATA_AGE = Gauge("k2ray_feed_data_age_seconds", "Seconds since the last frame.", ["exchange", "feed"])
FEED_CONNECTION = Gauge(
    "k2ray_feed_connection",
    "1 for the state that the connection is in: idle, waiting, connecting, open, closing, drained.",
    ["exchange", "feed", "kind"],
)
FEED_READY = Gauge(
    "k2ray_feed_ready", "1 while a connection delivers, or there is nothing to record.", ["exchange", "feed"]
)
FEED_CONNECTION_AGE = Gauge(
    "k2ray_feed_connection_age_seconds", "Seconds that the connection is up, 0 if it is not.", ["exchange", "feed"]
)
FEED_PONG_AGE = Gauge(
    "k2ray_feed_pong_age_seconds", "Seconds since the exchange last answered a ping of ours.", ["exchange", "feed"]
)
FEED_ROTATIONS = Counter(
    "k2ray_feed_rotations",
    "Connections replaced, make before break, by reason: schedule, lifetime, shutdown, operator, heartbeat, stale.",
    ["exchange", "feed", "reason"],
)
FEED_RECONNECTS = Counter(
    "k2ray_feed_reconnects", "Connections that ended before another one delivered.", ["exchange", "feed"]
)
FEED_PINGS = Counter("k2ray_feed_pings", "Our own pings, by outcome: sent, answered.", ["exchange", "feed", "outcome"])
FEED_STALE_PROBES = Counter(
    "k2ray_feed_stale_probes", "Times that a connection was silent for too long and was asked.", ["exchange", "feed"]
)

# serve/
HTTP_REQUESTS = Counter("k2ray_http_requests", "Requests answered, by route and status.", ["route", "status"])
HTTP_SECONDS = Histogram(
    "k2ray_http_seconds",
    "Seconds from a request to the end of its answer.",
    ["route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
QUERY_ROWS = Counter("k2ray_query_rows", "Rows in answers.")
QUERY_FILES = Counter("k2ray_query_files", "Data files read for answers.")

# lake/writer.py
COMMITTED_ROWS = Counter("k2ray_committed_rows", "Rows stored.", ["table"])
DUPLICATE_ROWS = Counter("k2ray_duplicate_rows", "Rows dropped since they were stored or pending already.", ["table"])
UNSTORABLE_RECORDS = Counter("k2ray_unstorable_records", "Records, or parts, sent to the dead letters.", ["table"])
COMMIT_SECONDS = Histogram(
    "k2ray_commit_seconds",
    "Seconds from a batch's end to its snapshot.",
    ["table"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
WRITER_LAG_TRADES = Gauge("k2ray_writer_lag_trades", "Rows in Kafka behind the writer's read position.", ["table"])
WRITER_LAG_SECONDS = Gauge(
    "k2ray_writer_lag_seconds", "Age of the newest record read while more wait behind it, else 0.", ["table"]
)
FRESHNESS_SECONDS = Gauge(
    "k2ray_freshness_seconds", "Event time to commit, of the newest commits' rows.", ["table", "percentile"]
)
COMMIT_WAIT_SECONDS = Gauge(
    "k2ray_commit_wait_seconds", "Seconds that the oldest row in the writer has waited for its commit.", ["table"]
)
WRITER_RETRIES = Counter(
    "k2ray_writer_retries", "Steps to try again, by what was away (catalog, broker, other).", ["table", "reason"]
)
OPEN_GAPS = Gauge("k2ray_open_gaps", "Missing id ranges that may still be filled.", ["table"])
WORLDS_MOVED = Counter("k2ray_worlds_moved", "Times that somebody else had committed.", ["table"])
OFFSET_JUMPS = Counter("k2ray_offset_jumps", "Holes and rewinds of the log that were recorded.", ["table", "kind"])
LEDGER_EVENTS = Counter("k2ray_ledger_events", "Restarted ids, strays, holes given up.", ["table", "kind"])

# query/leases.py, actors/leases.py
LEASED_SNAPSHOTS = Gauge("k2ray_leased_snapshots", "Snapshots that a cursor keeps from being expired.", ["table"])
LEASES_DROPPED = Counter(
    "k2ray_leases_dropped", "Leases given up early since more than 100 snapshots had one.", ["table"]
)

# lake/upkeep.py
TABLE_FILES = Gauge("k2ray_table_files", "Data files of the newest snapshot.", ["table"])
TABLE_SMALL_FILES = Gauge("k2ray_table_small_files", "Those of them below half of the compaction's target.", ["table"])
TABLE_SNAPSHOTS = Gauge("k2ray_table_snapshots", "Snapshots that the table's metadata holds.", ["table"])
TABLE_METADATA_BYTES = Gauge("k2ray_table_metadata_bytes", "Size of the newest metadata.json.", ["table"])
SNAPSHOTS_EXPIRED = Counter("k2ray_snapshots_expired", "Snapshots that upkeep has removed.", ["table"])
ORPHANS_REMOVED = Counter(
    "k2ray_orphans_removed", "Files deleted since nothing names them, or will, by kind.", ["table", "kind"]
)
UPKEEP_SECONDS = Histogram(
    "k2ray_upkeep_seconds",
    "Seconds of one look at a table.",
    ["table"],
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300),
)
DISK_FREE_BYTES = Gauge("k2ray_disk_free_bytes", "Room below data_dir and the warehouse.", ["place"])

# lake/compaction.py
COMPACTIONS = Counter(
    "k2ray_compactions", "Compactions by outcome: done, gave_way (to a newer commit), refused.", ["table", "outcome"]
)
COMPACTED_FILES = Counter("k2ray_compacted_files", "Small files that were replaced.", ["table"])
COMPACTED_ROWS = Counter("k2ray_compacted_rows", "Rows that were written anew, unchanged.", ["table"])
COMPACTED_BYTES = Counter("k2ray_compacted_bytes", "Bytes of the files that replaced small ones.", ["table"])

# backfill/
BACKFILL_CALLS = Counter(
    "k2ray_backfill_calls",
    "REST questions by outcome: answered, limited (429), banned (418), refused (other 4xx), failed.",
    ["exchange", "outcome"],
)
BACKFILL_ROWS = Counter("k2ray_backfill_rows", "Rows fetched by REST and handed to Kafka.", ["exchange"])
BACKFILL_WEIGHT_LEFT = Gauge(
    "k2ray_backfill_weight_left", "Request weight that backfill may still take in this window.", ["exchange"]
)
BACKFILL_BANNED_SECONDS = Gauge(
    "k2ray_backfill_banned_seconds",
    "Seconds that the exchange asked to wait, when it last did; 0 once over.",
    ["exchange"],
)
GAP_EVENTS = Counter(
    "k2ray_gaps", "What became of gaps: opened, filled, lost; recorded in the gaps table.", ["exchange", "kind"]
)
GAP_MISSING_IDS = Gauge("k2ray_gap_missing_ids", "Ids in open gaps.", ["exchange"])
GAP_OLDEST_SECONDS = Gauge("k2ray_gap_oldest_seconds", "Age of the oldest open gap; 0 without any.", ["exchange"])

# actors/limits.py
EXCHANGE_BUDGET_LEFT = Gauge(
    "k2ray_exchange_budget_left",
    "What all actors together may still take of an exchange's limit in its window; 0 while banned.",
    ["exchange", "resource"],
)
EXCHANGE_BANNED = Gauge(
    "k2ray_exchange_banned_seconds",
    "How long nothing is granted, 0 if the exchange said no such thing.",
    ["exchange", "resource"],
)

# actors/report.py
ACTOR_UP = Gauge("k2ray_actor_up", "1 while the actor runs and answers.", ["actor"])
ACTOR_FAILED = Gauge(
    "k2ray_actor_failed", "1 once the actor was given up after crashes; `k2ray up` brings it back.", ["actor"]
)
ACTOR_RESTARTS = Gauge(
    "k2ray_actor_restarts", "Times that the actor had to be started anew, by reason; no plans.", ["actor", "reason"]
)
ACTOR_REPLACEMENTS = Gauge(
    "k2ray_actor_replacements", "Planned changes of generation, by reason and outcome.", ["actor", "reason", "outcome"]
)
ACTOR_REPLACING = Gauge(
    "k2ray_actor_replacing", "1 while a new generation proves itself beside the old one.", ["actor"]
)
ACTOR_MEMORY_LIMIT_BYTES = Gauge(
    "k2ray_actor_memory_limit_bytes", "What the actor may take: soft (replaced), hard (killed).", ["actor", "limit"]
)

# actors/sampling.py
ACTOR_RSS_BYTES = Gauge("k2ray_actor_rss_bytes", "Resident memory of the process, shared pages included.")
ACTOR_VMS_BYTES = Gauge("k2ray_actor_vms_bytes", "Virtual memory of the process.")
ACTOR_STORE_BYTES = Gauge("k2ray_actor_object_store_bytes", "Object store memory that the process has in use.")
ACTOR_MEMORY_SLOPE = Gauge("k2ray_actor_memory_slope_bytes_per_hour", "How fast the process's memory grows.")
ACTOR_LEAK_SCORE = Gauge(
    "k2ray_actor_leak_score", "min(MB per hour / 50, 1) x R2 of a whole window; 0 until there is one."
)

# actors/supervisor.py, serve/status.py
METRICS_AGE_SECONDS = Gauge(
    "k2ray_metrics_age_seconds", "Seconds since the actor gave its metrics; what is shown of it is that old.", ["actor"]
)
SUPERVISOR_UP = Gauge(
    "k2ray_supervisor_up", "1 while the supervisor answers this replica of the API in time.", ["role"]
)
