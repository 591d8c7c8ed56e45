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
