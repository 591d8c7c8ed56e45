"""`k2ray up`: start everything in order; what this call started is undone if a later step fails.

Steps, the same numbers in the body:
1. broker (local, unless `kafka.bootstrap_servers` is set), 2. topics, 3. catalog, 4. Ray (our own head, or join),
5. supervisor, told what is wanted, 6. actors, awaited, 7. HTTP, awaited until /ready is 200.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actors.history import read_history, write_history
from actors.names import wanted_actors
from actors.releases import ReleaseStore, StoredRelease, now, who
from actors.wanted import Wanted, read_wanted, write_wanted
from k2ray.cli.console import complain, say, step
from k2ray.cli.down import drain_actors
from k2ray.cli.foreground import stay_up
from k2ray.cli.picture import unknown_symbols
from k2ray.cli.system import System
from k2ray.errors import BadInput, K2rayError, OperatorNeeded, SettingsError, TryAgain
from k2ray.lake.catalog import open_catalog
from k2ray.log.broker import LocalBroker
from k2ray.log.topics import ensure_topics
from k2ray.settings import Settings

SUPERVISOR_TIMEOUT_S = 120.0
MARGIN_S = 30.0
STATUS_TIMEOUT_S = 10.0

Undo = Callable[[], object]


def up(config: Path | None, *, foreground: bool) -> None:
    """Start the system of a settings file, or say that it runs.

    Raises:
        K2rayError: A step failed; what had been started by this call is stopped again.
    """
    if foreground:
        stay_up(config)
        return
    system = System.load(config)
    with system.alone():
        _bring_up(system)


def _bring_up(system: System) -> None:
    running = system.cluster.running() is not None
    if not running:
        _check_port(system)
    say(f"k2ray: starting below {system.layout.root}" if not running else f"k2ray: runs below {system.layout.root}")
    undo: list[tuple[str, Undo]] = []
    try:
        _run_steps(system, undo)
    except BaseException as error:
        if undo:
            reason = str(error) if isinstance(error, K2rayError) else type(error).__name__
            complain(f"up failed ({reason.splitlines()[0] if reason else reason}); undoing what it started")
        for title, action in reversed(undo):
            with contextlib.suppress(K2rayError), step(title):
                action()
        raise


def _run_steps(system: System, undo: list[tuple[str, Undo]]) -> None:
    settings, layout = system.settings, system.layout
    # 1
    local_broker = settings.kafka.bootstrap_servers is None
    if local_broker:
        with step("Kafka broker") as current:
            broker = LocalBroker(layout, settings.kafka.heap_bytes, report=say)
            address = broker.start()
            if not address.adopted:
                undo.append(("Stop the broker", broker.stop))
            current.result = f"{address.bootstrap}{' (runs already)' if address.adopted else ''}"
        settings = _with_bootstrap(settings, address.bootstrap)
    bootstrap = str(settings.kafka.bootstrap_servers)
    # 2
    with step("Topics"):
        ensure_topics(bootstrap, settings)
    # 3
    with step("Catalog"):
        open_catalog(settings, layout)
    # 4
    with step("Ray") as current:
        if not system.cluster.joins:
            started = system.cluster.running() is None
            system.cluster.start()
            if started:
                undo.append(("Stop Ray", system.cluster.stop))
        known = system.cluster.connect()
        current.result = f"{known.address}{'' if known.own else ' (joined)'}"
    # 5
    with step("Supervisor") as current:
        release, fresh = _choose_release(system, settings)
        pid = _supervise(system, settings, undo, release, local_broker=local_broker)
        current.result = f"pid {pid}"
    # 6
    with step("Actors") as current:
        actors = _await_actors(system)
        current.result = ", ".join(actor["name"] for actor in actors if actor["role"] != "supervisor")
    # 7
    from k2ray.cli.serving import start_serving, stop_serving

    with step("HTTP") as current:
        if system.ready():
            current.result = f"{system.api_url} (runs already)"
        else:
            undo.append(("Stop HTTP", lambda: stop_serving(system)))
            start_serving(system, settings, str(release.folder) if release is not None else None)
            current.result = system.api_url
    if fresh and release is not None:
        _record(system, release)
    system.write_up(
        {
            "api": system.api_url,
            "kafka": bootstrap,
            "ray": known.address,
            "dashboard": known.dashboard,
            "namespace": layout.namespace,
            "pids": {actor["name"]: actor["pid"] for actor in actors} | ({"ray": known.pid} if known.pid else {}),
        }
    )
    say(f"Ready: {system.api_url}")
    _say_unconnected(system)


def _choose_release(system: System, settings: Settings) -> tuple[StoredRelease | None, bool]:
    """Return the release to run, and whether it is started now; what runs already goes on with its own.

    Raises:
        OperatorNeeded: What runs was started with other settings.
    """
    layout = system.layout
    store = ReleaseStore(layout)
    before = read_wanted(layout.run)
    if before is None or before.stopping or not _supervisor_lives(system):
        return store.make(system.settings, _wanted(settings)), True
    if json.loads(before.settings) != json.loads(settings.to_json()):
        raise OperatorNeeded(
            "the running system has other settings: `k2ray deploy` brings it these ones without a gap "
            "(`k2ray deploy --dry-run` says what would change)"
        )
    half = read_history(layout).under_way
    if half is not None:
        complain(
            f"a {half.kind} of release {half.digest} was left half-way: `k2ray deploy` completes it, `k2ray rollback` "
            "takes it back"
        )
    elif before.release and before.release != store.digest_now(system.settings):
        complain(f"release {before.release} runs, other code is installed: `k2ray deploy` brings it without a gap")
    try:
        return store.open(before.release), False
    except (BadInput, OperatorNeeded):
        return None, False


def _supervisor_lives(system: System) -> bool:
    from actors.supervisor import system_status

    try:
        system_status(system.layout.namespace, STATUS_TIMEOUT_S)
    except TryAgain:
        return False
    return True


def _wanted(settings: Settings) -> dict[str, str]:
    from actors import edge

    return {logical: edge.CHILD_CLASSES[logical.split(":", 1)[0]] for logical in wanted_actors(settings)}


def _record(system: System, release: StoredRelease) -> None:
    """Note what runs now, unless it is what ran before."""
    history = read_history(system.layout)
    if history.running != release.digest or history.under_way is not None:
        history.begin(release.digest, "up", who(), now())
        history.succeed(now())
        write_history(system.layout, history)
    ReleaseStore(system.layout).prune(history.needed(), system.settings.deploy.releases_kept)


def _supervise(
    system: System,
    settings: Settings,
    undo: list[tuple[str, Undo]],
    release: StoredRelease | None,
    *,
    local_broker: bool,
) -> int:
    """Say what is wanted and make sure that a supervisor reads it; returns its pid."""
    from actors import edge
    from actors.supervisor import system_status

    layout = system.layout
    before = read_wanted(layout.run)
    lives = before is not None and not before.stopping and _supervisor_lives(system)
    if before is not None and lives:  # what was deployed stays deployed
        wanted = dataclasses.replace(before, epoch=before.epoch + 1)
    else:
        epoch = before.epoch + 1 if before is not None else 1
        wanted = Wanted(epoch, settings.to_json(), _wanted(settings), local_broker=local_broker)
        if release is not None:
            wanted = dataclasses.replace(wanted, release=release.digest, code=str(release.folder))
    write_wanted(layout.run, wanted)
    if not lives:
        undo.append(("Stop actors", lambda: drain_actors(system)))
    edge.start_supervisor(layout.namespace, str(layout.root), wanted.code)
    deadline_s = time.monotonic() + SUPERVISOR_TIMEOUT_S
    while True:
        try:
            status = system_status(layout.namespace, STATUS_TIMEOUT_S)
            if len(status["actors"]) > 1:
                pid: int = status["actors"][0]["pid"]
                return pid
        except TryAgain as error:
            if time.monotonic() > deadline_s:
                raise TryAgain(f"the supervisor did not come up: {error}") from error
        time.sleep(0.1)


def _await_actors(system: System) -> list[dict[str, Any]]:
    """Wait until every actor runs.

    Raises:
        OperatorNeeded: One failed for good.
        TryAgain: Not all were up in time; the message names those that were not, and why.
    """
    from actors.supervisor import system_status

    # An actor that is not up in time is tried once more with twice the time: both are waited for.
    allowed_s = 3 * system.settings.supervision.start_timeout_s + MARGIN_S
    deadline_s = time.monotonic() + allowed_s
    while True:
        actors: list[dict[str, Any]] = system_status(system.layout.namespace, STATUS_TIMEOUT_S)["actors"]
        waiting = [actor for actor in actors if actor["state"] != "running"]
        if not waiting:
            return actors
        failed = [f"{actor['name']}: {actor['last_reason']}" for actor in waiting if actor["state"] == "failed"]
        if failed:
            raise OperatorNeeded(f"given up after crashes: {'; '.join(failed)} (logs below {system.layout.logs})")
        if time.monotonic() > deadline_s:
            names = "; ".join(f"{actor['name']} is {actor['state']} ({actor['last_reason']})" for actor in waiting)
            raise TryAgain(f"not up within {allowed_s:g} s: {names}")
        time.sleep(0.1)


def _say_unconnected(system: System) -> None:
    """Say which feeds have no connection yet and which symbols are unknown, and why: neither stops anything else."""
    from actors.supervisor import system_status

    actors = system_status(system.layout.namespace, STATUS_TIMEOUT_S)["actors"]
    for sentence in unknown_symbols(actors):
        complain(
            f"{sentence}. A mistake in the settings, or not listed yet; `k2ray status` says so as long as it lasts"
        )
    for actor in actors:
        state = actor["detail"].get("connection", "open")
        if state not in {"open", "idle"}:
            reason = actor["detail"]["last_close"] or "no answer so far"
            complain(f"{actor['name']} is not connected: {reason}. It goes on trying; see `k2ray status --watch`")


def _check_port(system: System) -> None:
    """Refuse early what would fail late: a busy API port.

    Raises:
        SettingsError: Somebody else listens there.
    """
    api = system.settings.api
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((api.host, api.port))
        except OSError as error:
            raise SettingsError(
                f"api.port: {api.host}:{api.port} cannot be used ({error.strerror}); choose another "
                "(K2RAY_API__PORT=...), or stop what listens there"
            ) from None


def _with_bootstrap(settings: Settings, bootstrap: str) -> Settings:
    kafka = settings.kafka.model_copy(update={"bootstrap_servers": bootstrap})
    return settings.model_copy(update={"kafka": kafka})
