"""Avro, one record a trade, beside Arrow: codec alone, the writer's drain, and everything from socket to table.

`python -m benchmarks.avro_wire [--quick]`. Each is the median of some runs, the two codecs in turns, so that both meet
the same machine. Drain: a full topic to committed rows by one `TableWriter` in a process of its own. Socket to table:
the whole system (`benchmarks/end_to_end.py`) at one rate, its ids compared with what the exchange sent.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.codec import cpu_seconds, trade_batch
from benchmarks.drain import fill, run_child
from benchmarks.end_to_end import measure
from benchmarks.report import report
from k2ray.lake.catalog import load_table, open_catalog
from k2ray.layout import DataDir
from k2ray.log.broker import LocalBroker
from k2ray.log.topics import ensure_topics
from k2ray.settings import load_settings
from k2ray.wire.avro_decode import RecordReader
from k2ray.wire.avro_encode import encode_records
from k2ray.wire.avro_schema import SCHEMAS, shape_of
from k2ray.wire.codec import decode, encode_rows
from k2ray.wire.framing import FRAMING_BYTES, prefix_of

CODECS = ("arrow", "avro")
RUNS = 3
SYSTEM_RUNS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small run of each")
    parser.add_argument("--rate", type=float, default=100_000, help="trades per second from socket to table")
    parser.add_argument("--transport", default="picows", choices=["websockets", "picows"])
    parser.add_argument("--only", choices=["codec", "drain", "system"])
    arguments = parser.parse_args()
    runs = 1 if arguments.quick else RUNS
    if arguments.only in (None, "codec"):
        report("avro_codec", _codec(0.1 if arguments.quick else 1.0), "one thread, rows per CPU second")
    if arguments.only in (None, "drain"):
        rows = _drain(300_000 if arguments.quick else 2_000_000, runs)
        report("avro_drain", rows, f"median of {runs}; aim 100,000 rows/s; a peer (Kafka Connect sink): 228,000, 6.5 s")
    if arguments.only in (None, "system"):
        rate, seconds, runs = (20_000.0, 10.0, 1) if arguments.quick else (arguments.rate, 40.0, SYSTEM_RUNS)
        rows = _system(rate, seconds, arguments.transport, runs)
        report("avro_end_to_end", rows, f"median of {runs} over {arguments.transport}; all parts share the machine")
    return 0


def _codec(seconds: float) -> list[dict[str, Any]]:
    found = []
    reader = RecordReader(shape_of(SCHEMAS["trades"]), "trades")
    for size in (100, 1_000, 4_000):
        batch = trade_batch(size)
        value, headers = encode_rows("trades", batch)
        values = encode_records(batch, prefix_of(1))
        work: dict[str, tuple[int, Callable[[], object], Callable[[], object]]] = {
            "arrow": (len(value), lambda b=batch: encode_rows("trades", b), lambda v=value, h=headers: decode(v, h)),  # type: ignore[misc]
            "avro": (
                sum(map(len, values)),
                lambda b=batch: encode_records(b, prefix_of(1)),  # type: ignore[misc]
                lambda v=values: reader.read(v, FRAMING_BYTES),  # type: ignore[misc]
            ),
        }
        for codec, (length, encode, read) in work.items():
            found.append(
                {
                    "codec": codec,
                    "rows_together": size,
                    "bytes_a_row": round(length / size, 1),
                    "encode_rows_per_cpu_s": round(size / cpu_seconds(encode, seconds)),
                    "decode_rows_per_cpu_s": round(size / cpu_seconds(read, seconds)),
                }
            )
    return found


def _drain(rows: int, runs: int) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, float]]] = {codec: [] for codec in CODECS}
    with tempfile.TemporaryDirectory() as folder:
        broker = LocalBroker(DataDir(Path(folder) / "kafka"))
        address = broker.start()
        try:
            for run in range(runs):
                for codec in CODECS:
                    arguments = {
                        "data_dir": str(Path(folder) / f"{codec}-{run}"),
                        "kafka": {"topic_prefix": f"{codec}{run}"},
                        "wire": {"codec": codec},
                    }
                    settings = load_settings(arguments=arguments, environ={})
                    ensure_topics(address.bootstrap, settings)
                    fill(address.bootstrap, settings, rows)
                    before = _cpu_s(address.pid)
                    one = run_child(settings, address.bootstrap)
                    catalog = open_catalog(settings, DataDir(settings.data_dir))
                    table = load_table(catalog, settings, "trades")
                    assert table is not None
                    stored = table.scan(selected_fields=("symbol", "source_sequence")).to_arrow()
                    ids = stored.group_by(["symbol", "source_sequence"]).aggregate([]).num_rows
                    assert (stored.num_rows, ids) == (rows, rows), f"{stored.num_rows:,} rows, {ids:,} ids of {rows:,}"
                    found[codec].append(
                        {
                            "rows_per_s": one["rows"] / one["seconds"],
                            "cpu_s_per_million": one["cpu_s"] / one["rows"] * 1e6,
                            "broker_cpu_s_per_million": (_cpu_s(address.pid) - before) / one["rows"] * 1e6,
                            "first_commit_s": one["first_commit_s"],
                            "rss_mb": one["rss_mb"],
                        }
                    )
                    print(f"  {codec} {found[codec][-1]}", flush=True)
        finally:
            broker.stop()
    return [{"codec": codec, "rows": rows, **_medians(found[codec])} for codec in CODECS]


def _system(rate: float, seconds: float, transport: str, runs: int) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = {codec: [] for codec in CODECS}
    for _ in range(runs):
        for codec in CODECS:
            with tempfile.TemporaryDirectory(prefix="k2ray-bench-") as folder:
                found[codec].append(measure(Path(folder), rate, seconds, transport, 1, codec))
            print(f"  {codec} {found[codec][-1]}", flush=True)
    rows = []
    for codec in CODECS:
        numbers = [{key: value for key, value in run.items() if not isinstance(value, bool)} for run in found[codec]]
        sustained = all(run["sustained"] for run in found[codec])
        rows.append({"codec": codec, "sustained": sustained, **_medians(numbers)})
    return rows


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    keys = [key for key in runs[0] if all(key in run for run in runs)]
    found = {key: median(run[key] for run in runs) for key in keys}
    return {key: round(value) if value >= 100 else round(value, 2) for key, value in found.items()}


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    sys.exit(main())
