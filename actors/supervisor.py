"""The supervisor: a thin Ray shell around `actors/reconciler.py`. A plain class, made remote in `actors/edge.py`.

Its loop starts in `__init__`, which Ray runs again after every crash of it: nobody outside has to start it. It reads
what is wanted from a file, lists what lives, and carries out the reconciler's instructions, each in a task of its own,
so that one slow call never holds up the others. It also keeps the local broker alive, by its pid file.

`system_status` is how everybody else asks it, with a deadline: Ray notices when a supervisor dies, not when it hangs.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from actors import edge
from actors.alarm import Alarm
from actors.broker_keeper import BrokerKeeper
from actors.child import pid_space
from actors.leases import LeaseDesk
from actors.limits import LimitDesk
from actors.lives import Answered, Ask, Attach, Drain, Ended, Event, Fault, Instruction, Kill, Listed, Start
from actors.names import SUPERVISOR, ActorName
from actors.placement import nodes_of_copies
from actors.pressure import supervisor_ends
from actors.reconciler import Reconciler
from actors.report import count, count_supervisor, describe
from actors.sampling import MemoryReport, MemorySampler, as_health
from actors.scrape import Scrape
from actors.wanted import Wanted, read_wanted, write_private
from k2ray.clock import SystemClock
from k2ray.errors import BadInput, K2rayError, SupervisorUnavailable, TryAgain
from k2ray.layout import DataDir
from k2ray.logs import configure_logs, get_logger
from k2ray.settings import Settings
from k2ray.soak.samples import SampleLog

LIST_INTERVAL_S = 1.0
"""How often Ray is asked who lives; only strays and lost lives are found this way, so it need not be quick."""

ORDER_TIMEOUT_S = 30.0
"""Longest wait for the answer to an operator's order; a role that needs longer answers first and works afterwards."""

STATUS_STALE_S = 15.0
"""A status older than this means that the supervisor's loop hangs while its process lives."""


def system_status(namespace: str, timeout_s: float) -> dict[str, Any]:
    """Ask the supervisor for the state of all actors.

    Args:
        namespace: `DataDir.namespace`.
        timeout_s: Longest wait.

    Returns:
        `level`, `actors` (a list as in `status --json`), `replicas` (of HTTP: name, pid, rss_bytes), `gaps`, `broker`,
        `stopping`, `settled`, `loop_age_s`.

    Raises:
        SupervisorUnavailable: It does not live, does not answer in time, or its loop hangs.
    """
    status: dict[str, Any] = edge.ask(edge.find(SUPERVISOR, namespace), "status", timeout_s=timeout_s)
    if status["loop_age_s"] > STATUS_STALE_S:
        raise SupervisorUnavailable(f"the supervisor's loop has not turned for {status['loop_age_s']:.0f} s")
    return status


async def _awaited(reference: Any) -> Any:
    return await reference


class Supervisor:
    """Keeps the wanted actors alive.

    Args:
        data_dir: Root of the system that this supervisor belongs to.
    """

    def __init__(self, data_dir: str) -> None:
        self._layout = DataDir(Path(data_dir))
        configure_logs(self._layout.logs, SUPERVISOR)
        self._log = get_logger("actors.supervisor")
        self._clock = SystemClock()
        self._wanted: Wanted | None = None
        self._wanted_seen: tuple[int, int] | None = None
        self._reconciler: Reconciler | None = None
        self._keeper: BrokerKeeper | None = None
        self._limits = LimitDesk(self._layout.run)
        self._leases = LeaseDesk(self._clock)
        self._samples = SampleLog(self._layout.logs)
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._alarm = Alarm()
        self._handles: dict[ActorName, Any] = {}
        self._scrape = Scrape(self._handles)
        self._tasks: set[asyncio.Task[None]] = set()
        self._listed_s = float("-inf")
        self._listing = False
        self._remembered = ""
        self._births = 1
        self._status: dict[str, Any] = {}
        self._turned_s = self._born_s = time.monotonic()
        self._log.info("born", node=pid_space())
        self._loop_task = asyncio.get_running_loop().create_task(self._loop())
        self._mirror_task = asyncio.get_running_loop().create_task(self._scrape.mirror())

    async def status(self) -> dict[str, Any]:
        """Return the newest picture; runs in its own thread and only reads."""
        return {**self._status, "loop_age_s": time.monotonic() - self._turned_s}

    async def metrics(self, replica: str, text: str) -> tuple[str, dict[str, str]]:
        """Take a replica's metrics; return under which name they are shown, and everybody's (`actors/scrape.py`)."""
        shown = self._scrape.note_replica(replica, text)
        return shown, await self._scrape.collect()

    async def note_replica(self, replica: str, text: str) -> str:
        """Take a replica's metrics and return under which name they are shown."""
        return self._scrape.note_replica(replica, text)

    async def changed(self) -> None:
        """Look at the wanted state at once instead of at the next turn."""
        self._read_wanted()

    async def order(self, logical: str, order: str, **arguments: Any) -> dict[str, Any]:
        """Hand an operator's order to the generation that does the work, and return its answer.

        Raises:
            BadInput: Nobody of that name works now, or its role takes no such order.
            TryAgain: It did not answer in time, or died meanwhile.
        """
        name = self._at_work(logical)
        try:
            answer: dict[str, Any] = await asyncio.wait_for(
                _awaited(self._handles[name].order.remote(order, **arguments)), ORDER_TIMEOUT_S
            )
        except edge.TASK_ERROR as error:
            raise edge.own_error(error) from None
        except edge.RAY_ERRORS as error:
            raise TryAgain(f"{name} did not carry out {order!r}: {edge.first_line(error)}") from None
        except TimeoutError:
            raise TryAgain(f"{name} did not answer to {order!r} within {ORDER_TIMEOUT_S:g} s") from None
        return answer

    async def replace(self, logical: str, reason: str = "operator", release: str | None = None) -> dict[str, Any]:
        """Replace a child, make before break; returns at once, `status` shows how it goes on.

        Args:
            logical: Its name without generation.
            reason: `operator`, `deploy`: a metric's label, so one of few.
            release: A name in the wanted state that the new generation runs; None: what the old one does.

        Returns:
            `generation`: the new one's number. In `status`, the actor's `replacement` has this generation with
            `outcome` `under way`, then `done` or `failed` with `why`; `release` is what the generation at work runs.

        Raises:
            BadInput: It cannot be replaced now; the message says why. Nothing was begun.
        """
        self._read_wanted()
        if self._reconciler is None:
            raise BadInput("nothing is wanted yet")
        generation = self._reconciler.replace(logical, reason, self._clock.monotonic_s(), release=release)
        self._remember()  # before anybody is told: whoever follows a killed supervisor knows that it was begun
        self._log.info("replace", child=logical, reason=reason, release=release, generation=generation)
        return {"generation": generation}

    async def abandon(self, logical: str) -> bool:
        """Give up a replacement that is under way: the old generation works on. False if there is none."""
        given_up = self._reconciler is not None and self._reconciler.abandon(logical, self._clock.monotonic_s())
        self._log.info("abandon", child=logical, given_up=given_up)
        return given_up

    def _at_work(self, logical: str) -> ActorName:
        child = self._reconciler.children.get(logical) if self._reconciler is not None else None
        life = child.current if child is not None else None
        if life is None or life.name not in self._handles:
            raise BadInput(f"no actor {logical!r} runs now")
        return life.name

    async def permit(self, exchange: str, resource: str, amount: int) -> float:
        """Grant `amount` of an exchange's limit (0) or return the seconds to wait; ask through `limits.Permits`."""
        return self._limits.permit(exchange, resource, amount)

    async def ban(self, exchange: str, resource: str, for_s: float) -> None:
        """Grant nothing of it for so long: the exchange said so."""
        self._limits.ban(exchange, resource, for_s)

    async def observe(self, exchange: str, resource: str, used: int) -> None:
        """Take note of what the exchange itself counts."""
        self._limits.observe(exchange, resource, used)

    async def budgets(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return exchange -> resource -> `left`, `limit`, `banned_s`."""
        return self._limits.describe()

    async def note_leases(self, leases: dict[str, dict[int, float]]) -> None:
        """Take over a replica's leases of snapshots: table -> snapshot id -> seconds left."""
        self._leases.note(leases)

    async def leases(self, table: str) -> tuple[float, dict[int, float]]:
        """Return since how many seconds leases are noted, and snapshot id -> seconds left."""
        return self._leases.of(table)

    async def _loop(self) -> None:
        while True:
            interval_s = 0.25
            try:
                self._turn()
                if self._reconciler is not None:
                    interval_s = self._reconciler.rest_s(self._clock.monotonic_s())
            except Exception:  # noqa: BLE001  one bad turn must not end supervision
                self._log.exception("turn failed")
            self._turned_s = time.monotonic()
            await self._alarm.pause(interval_s)

    def _turn(self) -> None:
        self._read_wanted()
        reconciler = self._reconciler
        if reconciler is None:
            self._status = {"level": 0, "actors": [], "gaps": [], "broker": None, "stopping": False, "settled": False}
            return
        now_s = self._clock.monotonic_s()
        if now_s - self._listed_s >= LIST_INTERVAL_S and not self._listing:
            self._listing = True
            self._spawn(self._list())
        while not self._events.empty():
            reconciler.handle(self._events.get_nowait(), now_s)
        for instruction in reconciler.decide(now_s):
            self._carry_out(instruction)
        if self._keeper is not None and not reconciler.settled:
            self._keeper.tick(now_s)
        self._remember()
        self._limits.show()
        self._leases.show()
        count(reconciler, self._settings.memory, self._scrape.replicas())
        count_supervisor(self._births, self._settings.memory)
        assert self._wanted is not None
        broker = self._keeper.status() if self._keeper else None
        own = self._memory.report()
        picture = describe(reconciler, broker, self._births, self._wanted, own)
        self._status = {**picture, "replicas": self._scrape.replicas()}
        self._write_sample(now_s)
        self._mind_own_memory(own)

    def _write_sample(self, now_s: float) -> None:
        """Write down once a minute how all are, for `k2ray validate`."""
        try:
            self._samples.note(self._status, self._clock.now_us() / 1e6, now_s)
        except OSError as error:
            self._log.warning("no sample", reason=str(error))

    def _mind_own_memory(self, own: MemoryReport) -> None:
        """Make room by an end: Ray starts the next supervisor at once, and it adopts everybody."""
        age_s = time.monotonic() - self._born_s
        pause_s = self._settings.supervision.replace_pause_s
        if why := supervisor_ends(as_health(own), self._settings.memory, age_s, pause_s):
            self._log.warning("ends itself", reason=why)
            os.kill(os.getpid(), signal.SIGKILL)

    def _read_wanted(self) -> None:
        try:
            stat = (self._layout.run / "wanted.json").stat()
        except FileNotFoundError:
            return
        seen = (stat.st_mtime_ns, stat.st_ino)
        if seen == self._wanted_seen:
            return
        self._wanted_seen = seen
        wanted = read_wanted(self._layout.run)
        if wanted is None:
            return
        self._wanted = wanted
        self._settings = Settings.from_json(wanted.settings)
        self._limits.configure(self._settings)
        if self._reconciler is None:
            self._reconciler = Reconciler(self._settings.supervision, random.Random(), self._settings.memory)
            self._memory = MemorySampler(self._settings.memory)
            self._memory.start()
            memory = self._recall()
            self._births = int(memory.get("births", 0)) + 1
            self._reconciler.recall(memory)
        self._reconciler.follow(self._settings.supervision, self._settings.memory)
        self._reconciler.want(wanted.actors, wanted.epoch, base=wanted.release, runs=wanted.runs, held=wanted.held)
        self._reconciler.stop(wanted.stopping)
        if wanted.local_broker and self._keeper is None:
            self._keeper = BrokerKeeper(self._layout, self._settings.kafka.heap_bytes)
        self._log.info("wanted", epoch=wanted.epoch, actors=list(wanted.actors), stopping=wanted.stopping)

    # --- instructions

    def _carry_out(self, instruction: Instruction) -> None:
        name = instruction.name
        if not isinstance(instruction, Ask):
            reason = getattr(instruction, "reason", None)
            self._log.info(type(instruction).__name__.lower(), child=str(name), reason=reason)
        match instruction:
            case Start(release=release):
                self._spawn(self._live(name, release))
            case Attach():
                self._spawn(self._live(name, None))
            case Ask():
                self._spawn(self._ask(name))
            case Drain():
                self._spawn(self._drain(name))
            case Kill(pid=pid, node=node):
                self._handles.pop(name, None)
                self._spawn(asyncio.to_thread(edge.kill, str(name), self._layout.namespace, pid, node))

    async def _live(self, name: ActorName, release: str | None) -> None:
        """Make (with a release) or find the actor and await its `run()`; once a life, a task a turn would leak."""
        try:
            if release is not None:
                assert self._wanted is not None
                run = self._wanted.contents(release)
                path, namespace = self._wanted.actors[name.logical], self._layout.namespace
                apart_from = nodes_of_copies(name, self._reconciler.children.values()) if self._reconciler else ()
                arguments = (name, path, run.settings, namespace, run.code, apart_from)
                handle = await asyncio.to_thread(edge.start_child, *arguments)
            else:
                handle = await asyncio.to_thread(edge.find, str(name), self._layout.namespace)
            self._handles[name] = handle
            await handle.run.remote()
        except (*edge.RAY_ERRORS, K2rayError, OSError, ImportError, AttributeError) as error:
            reason, fault = edge.why_ended(error)
            self._log.warning("ended", child=str(name), reason=reason)
        else:
            reason, fault = "its work ended by itself", Fault.CRASH
        self._events.put_nowait(Ended(name, reason, fault))
        self._alarm.ring()

    async def _ask(self, name: ActorName) -> None:
        handle = self._handles.get(name)
        if handle is None:
            handle = await self._handle_of(name)
        if handle is None:
            return
        try:
            health = await handle.health.remote()
        except (*edge.RAY_ERRORS, OSError) as error:
            self._log.info("no health", child=str(name), reason=edge.first_line(error))
            return
        self._events.put_nowait(Answered(name, health))

    async def _handle_of(self, name: ActorName) -> Any:
        """Wait until the actor has been made or found; None if that takes too long."""
        for _ in range(400):
            if name in self._handles:
                return self._handles[name]
            await asyncio.sleep(0.05)
        return None

    async def _drain(self, name: ActorName) -> None:
        handle = self._handles.get(name) or await self._handle_of(name)
        if handle is None:
            return
        try:
            await handle.drain.remote()
        except (*edge.RAY_ERRORS, OSError) as error:
            self._log.info("no drain", child=str(name), reason=edge.first_line(error))

    async def _list(self) -> None:
        try:
            names = await asyncio.to_thread(edge.list_children, self._layout.namespace)
            self._events.put_nowait(Listed(names))
        except edge.RAY_ERRORS as error:
            self._log.warning("not listed", reason=edge.first_line(error))
        finally:
            self._listing = False
            self._listed_s = self._clock.monotonic_s()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("task failed", reason=repr(error))

    # --- what the next supervisor should know

    def _remember(self) -> None:
        assert self._reconciler is not None
        text = json.dumps(self._reconciler.remember() | {"births": self._births, "pid": os.getpid()}, sort_keys=True)
        if text != self._remembered:
            write_private(self._layout.run / "supervisor.json", text)
            self._remembered = text

    def _recall(self) -> dict[str, Any]:
        try:
            memory: dict[str, Any] = json.loads((self._layout.run / "supervisor.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return memory
