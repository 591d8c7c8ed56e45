"""The commands and their options. Each command's work is in a file of its own, imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from k2ray.cli.broker import app as broker
from k2ray.cli.sim import sim

app = typer.Typer(
    name="k2ray",
    help="Record live market data into an Iceberg lakehouse, exactly once, and answer questions about it over HTTP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="Settings file. Default: $K2RAY_CONFIG, else ./k2ray.yaml.", show_default=False
    ),
]


@app.command()
def up(
    config: Config = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and drain on SIGINT or SIGTERM as `down` does.")
    ] = False,
) -> None:
    """Start everything: broker, topics, Ray, supervisor, actors, HTTP. Returns when the API is ready.

    Running it twice is harmless; running it again also brings back actors that were given up as failed.
    """
    from k2ray.cli.up import up as run

    run(config, foreground=foreground)


@app.command()
def deploy(
    config: Config = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
) -> None:
    """Let the installed code and the settings file take over from what runs, without a gap.

    New actors start beside the old ones and prove themselves on live data before the old ones drain; HTTP is updated in
    place. If anything fails, what ran before runs on, or again, and the exit status is 1.
    """
    from k2ray.cli.deploy import deploy as run

    run(config, dry_run=dry_run)


@app.command()
def rollback(
    config: Config = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Digest of the release, or its beginning. Default: the one before.")
    ] = None,
) -> None:
    """Let an earlier release take over again, its code and its settings, without a gap."""
    from k2ray.cli.rollback import rollback as run

    run(config, to=to)


@app.command()
def status(
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every two seconds until Ctrl-C.")] = False,
) -> None:
    """Show the actors, their rates and lags, and open gaps. Exit status: 0 healthy, 1 degraded, 2 down."""
    from k2ray.cli.status import status as run

    raise typer.Exit(run(config, as_json=json, watch=watch))


@app.command()
def rotate(
    feed: Annotated[str, typer.Argument(help="A feed's name as `k2ray status` shows it, such as feed:binance:0.")],
    config: Config = None,
) -> None:
    """Replace a feed's connection to its exchange without a gap: the old one closes when the new one delivers."""
    from k2ray.cli.rotate import rotate as run

    run(config, feed)


@app.command()
def gaps(
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
    exchange: Annotated[str | None, typer.Option(help="Only this one, such as binance.")] = None,
    symbols: Annotated[str | None, typer.Option(help="Only these, with commas between.")] = None,
    channel: Annotated[str | None, typer.Option(help="trades, agg_trades or quotes. Default: all recorded.")] = None,
    start: Annotated[str | None, typer.Option(help="From here on: 2026-01-31T12:00:00Z, or microseconds.")] = None,
    end: Annotated[str | None, typer.Option(help="Up to here, not included.")] = None,
    first_id: Annotated[str | None, typer.Option(help="A range of ids instead of times: its first.")] = None,
    last_id: Annotated[str | None, typer.Option(help="Its last, included.")] = None,
) -> None:
    """Show first and last id of each instrument and what is missing. Exit status: 0 complete, 1 not, 2 nothing there.

    Works while the system is down; what is on its way is only known while it runs.
    """
    from k2ray.cli.gaps import gaps as run

    question = {"exchange": exchange, "symbols": symbols, "channel": channel, "start": start, "end": end}
    raise typer.Exit(run(config, as_json=json, question={**question, "first_id": first_id, "last_id": last_id}))


@app.command()
def down(config: Config = None) -> None:
    """Drain and stop what `up` started: feeds, then writers, then the rest. Never stops a Ray that it joined."""
    from k2ray.cli.down import down as run

    run(config)


@app.command()
def env(config: Config = None) -> None:
    """Print the variables with which `ray` and `serve` commands reach this cluster: eval "$(k2ray env)"."""
    from k2ray.cli.env import env as run

    run(config)


@app.command()
def monitoring(
    folder: Annotated[Path, typer.Argument(help="Where the files go; made if missing.")],
    config: Config = None,
) -> None:
    """Write Prometheus' config, the alert rules with their runbook, and Grafana's dashboards for this system."""
    from k2ray.cli.monitoring import monitoring as run

    run(config, folder)


app.add_typer(broker, name="broker")
app.command()(sim)


@app.command()
def demo(
    seconds: Annotated[float | None, typer.Option(min=1, help="Record for this long. Default: until Ctrl-C.")] = None,
    rate: Annotated[float, typer.Option(min=1, help="Trades per second that the simulated exchange makes.")] = 500,
    data_dir: Annotated[Path, typer.Option(help="Where the demo's data goes; made anew.")] = Path("k2ray-demo"),
    port: Annotated[
        int | None, typer.Option(help="The API's port. Default: 8000, or a free one if that is taken.")
    ] = None,
    transport: Annotated[str, typer.Option(help="How the feed reads: websockets or picows.")] = "websockets",
    seed: Annotated[int, typer.Option(help="What the simulated market's content follows from.")] = 1,
) -> None:
    """Record a simulated exchange over TLS, answer questions about it, and prove at the end that nothing is missing."""
    from k2ray.cli.demo import demo as run

    raise typer.Exit(run(seconds, rate=rate, data_dir=data_dir, port=port, transport=transport, seed=seed))


@app.command()
def soak(
    hours: Annotated[float, typer.Option(min=0.001, help="Of the schedule's time.")] = 1.0,
    rate: Annotated[float, typer.Option(min=1, help="Trades per second that the simulated exchange makes.")] = 500,
    data_dir: Annotated[Path, typer.Option(help="Data and report go there; made anew.")] = Path("k2ray-soak"),
    port: Annotated[int | None, typer.Option(help="The API's port. Default: 8000, or a free one.")] = None,
    transport: Annotated[str, typer.Option(help="How the feed reads: websockets or picows.")] = "websockets",
    compress: Annotated[
        float, typer.Option(min=1, help="Shorten schedules by this: 720 makes a day of 24 hours two minutes.")
    ] = 1.0,
    sample_s: Annotated[float, typer.Option(min=0.5, help="Real seconds between samples.")] = 60.0,
    quotes: Annotated[
        bool, typer.Option(help="Record quotes too. Without them each of the exchange's days ends with a cut.")
    ] = True,
) -> None:
    """Run the whole system for hours and judge it: memory growth, rate, ids lost and doubled, rotations, pings.

    Exit status: 0 passed, 1 failed, 2 not proven (too short, too few samples).
    """
    from k2ray.cli.soak import Soak
    from k2ray.cli.soak import soak as run

    wish = Soak(hours, rate, data_dir, port, transport, compress, sample_s, quotes)
    raise typer.Exit(run(wish))


@app.command()
def validate(
    config: Config = None,
    since: Annotated[str, typer.Option(help="Beginning: 2026-01-31T12:00 (UTC), or how long ago: 7d, 12h, 90min.")] = (
        "24h"
    ),
    until: Annotated[str | None, typer.Option(help="End, the same way. Default: a minute ago.")] = None,
    out: Annotated[Path | None, typer.Option(help="The report's folder. Default: reports below data_dir.")] = None,
) -> None:
    """Judge a period of a running system by its samples and its tables, as a soak is judged.

    Exit status: 0 passed, 1 failed, 2 not proven (too short, too few samples).
    """
    from k2ray.cli.validate import validate as run

    raise typer.Exit(run(config, since, until, out))
