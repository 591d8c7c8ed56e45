"""The one place where plain classes become Ray actors, and where Ray's calls and exceptions end.

Everything above it works with `ActorName`s and k2ray's own errors. `num_cpus=0` throughout: our actors mostly wait, and
with one CPU each a laptop would be full at the third. Children have `max_restarts=0`: the supervisor makes a new
generation itself, with backoff and a record of why, which Ray's own restarts have not.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
from collections.abc import Collection, Iterable
from typing import Any

import psutil
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    GetTimeoutError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.child import pid_space
from actors.lives import Fault
from actors.names import SUPERVISOR, ActorName
from actors.placement import preferred_node
from k2ray.errors import ActorNotMade, BadInput, K2rayError, OperatorNeeded, SupervisorUnavailable

HEALTH_GROUP = "health"
"""Health questions have their own threads: in the loop of an overloaded feed they took 0.8 s instead of 11 ms."""

_FEW_ARENAS = {SUPERVISOR, "serializer", "backfill", "upkeep"}
"""Whose processes have two of glibc's arenas: with one for each of its many threads a supervisor's memory grew by 16 MB
over 25,000 health questions, an hour's, and by 1 MB so. Feeds and writers allocate much, and keep what they have."""

_KEPT = {"lifetime": "detached", "num_cpus": 0, "max_task_retries": 0, "max_concurrency": 100}

CHILD_CLASSES = {
    "feed": "actors.feed:FeedActor",
    "backfill": "actors.backfill:BackfillActor",
    "writer": "actors.writer:WriterActor",
    "upkeep": "actors.upkeep:UpkeepActor",
    "serializer": "actors.serializer:SerializerActor",
}
"""Role -> the class that lives it. A wanted state may name others, which is how tests supervise small ones."""


def load_class(path: str) -> type[Any]:
    """Return the class that `module:Class` names."""
    module, _, name = path.partition(":")
    try:
        loaded: type[Any] = getattr(importlib.import_module(module), name)
    except Exception as error:  # a new release's code may fail in any way while it is imported
        raise ImportError(f"{path}: {type(error).__name__}: {first_line(error)}") from error
    return loaded


def _make_remote(plain: type[Any], health_methods: Iterable[str]) -> Any:
    for method in health_methods:
        ray.method(concurrency_group=HEALTH_GROUP)(getattr(plain, method))
    options: dict[str, Any] = {"concurrency_groups": {HEALTH_GROUP: 2}}
    return ray.remote(**options)(plain)


def start_child(
    name: ActorName,
    class_path: str,
    settings_json: str,
    namespace: str,
    code: str | None = None,
    apart_from: Collection[str] = (),
) -> Any:
    """Make a new actor of this name; returns its handle at once, before it is up.

    Args:
        name: Its own.
        class_path: `module:Class`.
        settings_json: `Settings.to_json()`.
        namespace: `DataDir.namespace`.
        code: Folder that its modules are imported from; None: what is installed.
        apart_from: Nodes where it should not live, if there are others.
    """
    remote = _make_remote(load_class(class_path), ["health", "metrics"])
    options = dict(_KEPT, name=str(name), namespace=namespace, max_restarts=0, **_process_options(code, name.role))
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    node = preferred_node(name, [item["NodeID"] for item in nodes if item["Alive"]], apart_from)
    if node is not None:
        # Not soft: for actors without CPUs Ray 2.60 puts a soft wish on any node. If this one is lost meanwhile, the
        # actor ends (`why_ended`), and the next generation has another.
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
    return remote.options(**options).remote(str(name), settings_json)


def _process_options(code: str | None, role: str) -> dict[str, Any]:
    """Return what the process of an actor needs; nothing without code, so that Ray may take one that waits already."""
    if code is None:
        return {}
    # 0 is glibc's own choice; unsaid, the supervisor's children would have what it has.
    arenas = "2" if role in _FEW_ARENAS else "0"
    return {"runtime_env": {"env_vars": {"PYTHONPATH": f"{code}:${{PYTHONPATH}}", "MALLOC_ARENA_MAX": arenas}}}


def start_supervisor(namespace: str, data_dir: str, code: str | None = None) -> Any:
    """Make the supervisor, or find the one that lives; Ray itself restarts it, with these same arguments."""
    remote = _make_remote(load_class("actors.supervisor:Supervisor"), ["status"])
    options = dict(_KEPT, name=SUPERVISOR, namespace=namespace, max_restarts=-1, get_if_exists=True)
    options |= _process_options(code, SUPERVISOR)
    return remote.options(**options).remote(data_dir)


def find(name: str, namespace: str) -> Any:
    """Return the handle of a living actor.

    Raises:
        SupervisorUnavailable: No actor of this name lives (also for other names than the supervisor's).
    """
    try:
        return ray.get_actor(name, namespace=namespace)
    except ValueError:
        raise SupervisorUnavailable(f"no actor {name!r} lives in namespace {namespace}") from None
    except RayError as error:
        raise SupervisorUnavailable(f"actor {name!r} cannot be looked up: {first_line(error)}") from error


def list_children(namespace: str) -> frozenset[ActorName]:
    """Return the names of all living children of a namespace."""
    found = set()
    for entry in ray.util.list_named_actors(all_namespaces=True):
        if entry["namespace"] == namespace:
            with contextlib.suppress(BadInput):
                found.add(ActorName.parse(entry["name"]))
    return frozenset(found)


def ask(handle: Any, method: str, *arguments: Any, timeout_s: float, **named: Any) -> Any:
    """Call a method and wait for the answer, for scripts and threads.

    Raises:
        ActorNotMade: Its constructor raised.
        SupervisorUnavailable: No answer in time, or the actor died.
        K2rayError: What the method raised, if it is one of ours.
    """
    try:
        return ray.get(getattr(handle, method).remote(*arguments, **named), timeout=timeout_s)
    except RayTaskError as error:
        own = own_error(error)
        if own is error:
            raise
        raise own from error
    except GetTimeoutError:
        raise SupervisorUnavailable(f"no answer to {method}() within {timeout_s:g} s") from None
    except RayActorError as error:
        if error.actor_init_failed:
            raise ActorNotMade(f"it cannot be made: {last_line(error)}") from error
        raise SupervisorUnavailable(f"died before it answered {method}(): {first_line(error)}") from error


def own_error(error: RayTaskError) -> BaseException:
    """Return what an actor's method raised, if it is one of our errors, else the error as Ray gives it."""
    cause = error.cause
    return cause if isinstance(cause, K2rayError) else error


async def answer(handle: Any, method: str, *arguments: Any) -> Any:
    """Call a method and await the answer, from an actor's event loop; the caller sets the deadline.

    Raises:
        SupervisorUnavailable: The actor died, is away, or could not answer.
        K2rayError: What the method raised, if it is one of ours.
    """
    try:
        return await getattr(handle, method).remote(*arguments)
    except RayError as error:
        if isinstance(error, RayTaskError) and isinstance(error.cause, K2rayError):
            raise error.cause from None
        raise SupervisorUnavailable(f"no answer to {method}(): {first_line(error)}") from None


def why_ended(error: BaseException) -> tuple[str, Fault]:
    """Say why a `run()` ended, for people, and what kind of end that is."""
    if isinstance(error, RayTaskError):
        cause = error.cause if isinstance(error.cause, BaseException) else error
        fault = Fault.OPERATOR if isinstance(cause, OperatorNeeded) else Fault.CRASH
        return f"{type(cause).__name__}: {first_line(cause)}", fault
    if isinstance(error, OutOfMemoryError):
        return "killed by Ray: the node ran out of memory", Fault.NODE
    if isinstance(error, ActorUnschedulableError):
        return "it could not be placed: its node was lost before it was made", Fault.NODE
    if isinstance(error, ActorDiedError | ActorUnavailableError):
        return f"its process died ({_exit_detail(error)})", Fault.CRASH
    return f"{type(error).__name__}: {first_line(error)}", Fault.CRASH


def _exit_detail(error: BaseException) -> str:
    found = re.search(r"exit type: (\w+)", str(error))
    return found[1] if found else first_line(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def last_line(error: BaseException) -> str:
    """Return the last line of an error's text that says something: of a traceback, what was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def kill(name: str, namespace: str, pid: int | None, node: str | None) -> None:
    """Make an actor's process go away: by Ray, and at once by SIGKILL where it is ours to signal.

    `ray.kill` alone takes 5 s for a stopped process and frees the name before the process is gone; SIGTERM would make
    an actor deaf without ending its work.
    """
    with contextlib.suppress(ValueError, RayError):
        # First, so that Ray takes the end for an intended one and does not warn every driver of it.
        ray.kill(ray.get_actor(name, namespace=namespace), no_restart=True)
    if pid is not None and node == pid_space() and is_actor_process(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_actor_process(pid: int) -> bool:
    """Whether the pid is a Ray worker's, so that a reused number of somebody else's is never killed."""
    try:
        return any(part.startswith("ray::") for part in psutil.Process(pid).cmdline()[:1])
    except psutil.Error:
        return False


TASK_ERROR = RayTaskError
"""What a method of an actor raised, wrapped by Ray; `own_error` unwraps it."""

RAY_ERRORS = (RayError, ValueError)
"""What a call on an actor may raise that is not the actor's own doing."""
