"""Every metric that k2ray exports, one block a module; docs list them, and each has a test that makes it move.

Names are `k2ray_<noun>_<unit>`; prometheus-client adds `_total` to counters.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

# log/producer.py
PRODUCED_ROWS = Counter("k2ray_produced_rows", "Rows that Kafka has confirmed.", ["topic"])
PRODUCE_FAILURES = Counter("k2ray_produce_failures", "Records that Kafka did not take in time.", ["topic"])
PRODUCE_QUEUE_BYTES = Gauge("k2ray_produce_queue_bytes", "Bytes sent to Kafka and not yet confirmed.", ["client"])
SPOOL_BYTES = Gauge("k2ray_spool_bytes", "Bytes on disk that wait for Kafka.", ["client"])
SHED_ROWS = Counter("k2ray_shed_rows", "Rows given up since the spool was full.", ["topic"])
DEAD_LETTERS = Counter(
    "k2ray_dead_letters", "Frames and records put aside with their raw bytes.", ["exchange", "source"]
)

# log/lag.py
BROKER_QUESTIONS = Counter("k2ray_broker_questions", "Times that Kafka was asked for a partition's end.")

# feed/session.py
FEED_FRAMES = Counter("k2ray_feed_frames", "Frames received.", ["exchange", "feed"])
FEED_ROWS = Counter("k2ray_feed_rows", "Rows handed to the producer.", ["exchange", "feed", "channel"])
FEED_IGNORED = Counter("k2ray_feed_ignored_frames", "Frames of streams that nobody subscribed.", ["exchange", "feed"])
FEED_CONNECTS = Counter("k2ray_feed_connects", "Attempts to connect, by outcome.", ["exchange", "feed", "outcome"])
FEED_DATA_AGE = Gauge("k2ray_feed_data_age_seconds", "Seconds since the last frame.", ["exchange", "feed"])

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
OPEN_GAPS = Gauge("k2ray_open_gaps", "Missing id ranges that may still be filled.", ["table"])
WORLDS_MOVED = Counter("k2ray_worlds_moved", "Times that somebody else had committed.", ["table"])
OFFSET_JUMPS = Counter("k2ray_offset_jumps", "Holes and rewinds of the log that were recorded.", ["table", "kind"])
LEDGER_EVENTS = Counter("k2ray_ledger_events", "Restarted ids, strays, holes given up.", ["table", "kind"])

# actors/report.py
ACTOR_UP = Gauge("k2ray_actor_up", "1 while the actor runs and answers.", ["name"])
ACTOR_FAILED = Gauge(
    "k2ray_actor_failed", "1 once the actor was given up after crashes; `k2ray up` brings it back.", ["name"]
)
ACTOR_RESTARTS = Gauge("k2ray_actor_restarts_count", "Times that the actor had to be started anew.", ["name"])
ACTOR_RSS_BYTES = Gauge("k2ray_actor_rss_bytes", "Resident memory of the actor's process.", ["name"])
