"""`k2ray down`: drain, then stop, only what `up` started.

1. The supervisor is told first, else it would bring back what ends. It drains feeds (their producers flush), then
   writers (they commit what Kafka holds), then upkeep, each within its deadline.
2. HTTP goes, 3. the supervisor, 4. our own Ray head by its pid (a joined one is left alone), 5. the local broker.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from actors.names import ROLES, SUPERVISOR
from actors.wanted import read_wanted, write_wanted
from k2ray.cli.console import complain, say, step
from k2ray.cli.system import System
from k2ray.errors import K2rayError, OperatorNeeded, RayUnavailable, SupervisorUnavailable
from k2ray.log.broker import LocalBroker

ANSWER_TIMEOUT_S = 10.0
GONE_TIMEOUT_S = 5.0


def down(config: Path | None) -> None:
    """Drain and stop the system of a settings file; harmless where nothing runs."""
    system = System.load(config)
    if not system.layout.run.exists():
        say(f"k2ray: nothing runs below {system.layout.root}")
        return
    with system.alone():
        stop_system(system)


def stop_system(system: System) -> None:
    """Do all of `down`; each step is tried even if an earlier one failed."""
    say(f"k2ray: stopping what runs below {system.layout.root}")
    if system.cluster.running() is not None:
        try:
            with step("Connect to Ray"):
                system.cluster.connect()
        except RayUnavailable as error:
            complain(f"{error}; its actors cannot be drained")
        else:
            # 1 and 3
            with step("Drain actors") as current:
                current.result = drain_actors(system)
            # 2
            from k2ray.cli.serving import stop_serving

            with step("Stop HTTP"):
                stop_serving(system)
            import ray

            ray.shutdown()
    # 4
    if not system.cluster.joins:
        with step("Stop Ray") as current:
            current.result = "" if system.cluster.stop() else "did not run"
    # 5
    if system.settings.kafka.bootstrap_servers is None:
        with step("Stop the broker") as current:
            current.result = "" if LocalBroker(system.layout, report=say).stop() else "did not run"
    for name in ("up.json", "wanted.json", "supervisor.json", "ray.json"):
        (system.layout.run / name).unlink(missing_ok=True)
    say("Stopped.")


def drain_actors(system: System) -> str:
    """Let the supervisor drain everything, then end it; whatever is left is killed. Says what happened."""
    from actors import edge

    layout = system.layout
    with contextlib.suppress(OperatorNeeded):
        wanted = read_wanted(layout.run)
        if wanted is not None:
            write_wanted(layout.run, dataclasses.replace(wanted, actors={}, stopping=True))
    patience_s = (len(ROLES) + 1) * system.settings.supervision.drain_timeout_s + ANSWER_TIMEOUT_S
    result = "drained"
    try:
        try:
            _await_settled(system, patience_s)
        except SupervisorUnavailable:
            # Dead or hanging: Ray makes a new one, which reads that it is to drain.
            _kill_supervisor_process(system)
            _await_settled(system, patience_s)
    except K2rayError as error:
        result = f"not drained ({error})"
    # What is drained is being killed by the supervisor at this moment: it is not counted as left.
    gone_s = time.monotonic() + GONE_TIMEOUT_S
    while (left := edge.list_children(layout.namespace)) and result == "drained" and time.monotonic() < gone_s:
        time.sleep(0.05)
    for name in sorted(left):
        edge.kill(str(name), layout.namespace, None, None)
    edge.kill(SUPERVISOR, layout.namespace, None, None)
    return result if not left else f"{result}; killed {', '.join(str(name) for name in sorted(left))}"


def _await_settled(system: System, patience_s: float) -> None:
    """Wait until no actor is left but the supervisor.

    Raises:
        SupervisorUnavailable: It does not answer, or is not done in time.
    """
    from actors.supervisor import system_status

    deadline_s = time.monotonic() + patience_s
    silent_s = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        status: dict[str, Any] = {"settled": False}
        try:
            status = system_status(system.layout.namespace, ANSWER_TIMEOUT_S)
            silent_s = time.monotonic() + ANSWER_TIMEOUT_S
        except SupervisorUnavailable:
            if time.monotonic() > silent_s:
                raise
        if status["settled"]:
            return
        if time.monotonic() > deadline_s:
            raise SupervisorUnavailable(f"not drained within {patience_s:.0f} s")
        time.sleep(0.05)


def _kill_supervisor_process(system: System) -> None:
    from actors.edge import is_actor_process

    try:
        pid = json.loads((system.layout.run / "supervisor.json").read_text(encoding="utf-8")).get("pid")
    except (OSError, ValueError):
        return
    if pid and is_actor_process(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
