"""Carry out the moves of a deployment (`actors/deploy.py`).

Everything is decided by what really runs: the supervisor's status and what HTTP says of itself. The wanted state on
disk is changed before each move, so a process that is killed between two of them leaves a system that works, whose next
`k2ray deploy` or `k2ray rollback` plans from there. Needs a connected driver.

Next in the flow: `actors/supervisor.py`, which starts and drains; `k2ray/cli/serving.py`, which updates HTTP.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpx

from actors import edge
from actors.child import pid_space
from actors.deploy import Deed, Move, Outcome, Running, Verdict, judge, plan
from actors.history import History, write_history
from actors.names import SUPERVISOR
from actors.releases import StoredRelease
from actors.steadiness import Steadiness
from actors.supervisor import system_status
from actors.wanted import Release, Wanted, read_wanted, write_wanted
from k2ray.cli.console import Step, complain, step
from k2ray.cli.serving import update_serving
from k2ray.cli.system import System
from k2ray.errors import ActorNotMade, BadInput, K2rayError, OperatorNeeded, SupervisorUnavailable, TryAgain
from k2ray.settings import Supervision

ANSWER_TIMEOUT_S = 10.0
PAUSE_S = 0.1
SUPERVISOR_TIMEOUT_S = 60.0
"""A supervisor answers 2 s after its start here; a machine that does much else takes a multiple."""
SUPERVISOR_TRIES = 2
"""A supervisor whose constructor raised so often is not made again: nobody supervises meanwhile."""
ADOPTION_TIMEOUT_S = 20.0
"""A second and a half here: the living are listed once a second and asked how they are."""
MARGIN_S = 30.0
"""Above what the supervisor itself allows an actor, so that its verdict with a reason comes first."""


class MoveFailed(K2rayError):
    """A move did not succeed; the message says why. What was moved is taken back."""


class Rollout:
    """One deployment of a running system.

    Args:
        system: Whose.
        bootstrap: Kafka's address, a local broker's too.
        history: With this deployment begun.
    """

    def __init__(self, system: System, bootstrap: str, history: History) -> None:
        self._system = system
        self._layout = system.layout
        self._policy: Supervision = system.settings.supervision
        self._bootstrap = bootstrap
        self._history = history

    # --- what runs

    def actors(self) -> dict[str, dict[str, Any]]:
        """Return logical name -> its entry in the supervisor's status, the supervisor left out.

        Raises:
            TryAgain: It does not answer, and Ray did not bring it back in time.
        """
        status = self._patiently(lambda: system_status(self._layout.namespace, ANSWER_TIMEOUT_S))
        return {_logical(actor): actor for actor in status["actors"] if actor["name"] != SUPERVISOR}

    def running(self) -> Running:
        """Return what runs; a supervisor that is gone is started first.

        Raises:
            K2rayError: Neither does it run nor can it be started.
        """
        try:
            self._await(self._supervisor_answers, 2 * ANSWER_TIMEOUT_S)
        except MoveFailed:
            wanted = self._wanted()
            edge.start_supervisor(self._layout.namespace, str(self._layout.root), wanted.code)
            self._await(self._supervisor_answers, SUPERVISOR_TIMEOUT_S)
        self._settle()
        status = system_status(self._layout.namespace, ANSWER_TIMEOUT_S)
        supervisor = next(actor for actor in status["actors"] if actor["name"] == SUPERVISOR)
        return Running(
            supervisor["detail"]["code"],
            http_release(self._system),
            {name: str(actor["detail"].get("code", "")) for name, actor in self.actors().items()},
        )

    def _supervisor_answers(self) -> Verdict:
        status = system_status(self._layout.namespace, ANSWER_TIMEOUT_S)
        known = len(status["actors"]) > 1
        return Verdict(Outcome.DONE) if known else Verdict(Outcome.WAITING, "it has not read what is wanted yet")

    def _settle(self) -> None:
        """Let a supervisor that was just born find its actors; those that are in trouble anyway are not waited for."""
        deadline_s = time.monotonic() + ADOPTION_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if all(actor["state"] in {"running", "failed"} for actor in self.actors().values()):
                return
            time.sleep(PAUSE_S)

    # --- moving

    def go(self, target: StoredRelease, others: Iterable[StoredRelease], *, back: bool = False) -> None:
        """Make every move from what runs to the target.

        Args:
            target: The release to reach.
            others: Those that may run now.
            back: Whether the target is an older one.

        Raises:
            MoveFailed: One move failed; those before it are done.
        """
        known = {release.digest: self._contents(release) for release in (target, *others)}
        self._write(releases={name: release for name, release in known.items() if name != self._wanted().release})
        running = self.running()
        self._give_up_others(target)
        for move in plan(running, target.digest, target.actors, back=back):
            self._note(str(move))
            with step(str(move)[:1].upper() + str(move)[1:]) as current:
                self._make(move, target, known, current)

    def finish(self, target: StoredRelease) -> None:
        """Forget the releases that nobody runs any more: the wanted state is the target's alone."""
        contents = self._contents(target)
        self._write(
            release=target.digest,
            settings=contents.settings,
            code=contents.code,
            actors=dict(target.actors),
            releases={},
            runs={},
            held=[],
        )

    def watch(self, target: StoredRelease, seconds: float) -> None:
        """See that all actors and HTTP keep working for a while.

        Raises:
            MoveFailed: One does not.
        """
        self._note(f"watch for {seconds:g} s")
        with step(f"Watch for {seconds:g} s"):
            begun_s = time.monotonic()
            first_commit_s = max(seconds, self._system.settings.lake.commit.interval_s) + MARGIN_S
            steadiness = Steadiness(target.actors, target.digest, self.actors(), begun_s, first_commit_s)
            while True:
                actors = self.actors()
                verdict = steadiness.look(actors, now_s := time.monotonic())
                if verdict.outcome is Outcome.FAILED:
                    raise MoveFailed(verdict.reason)
                # Who is not at work just now, or has still to commit, is waited for: it comes back, or fails.
                if verdict.outcome is Outcome.DONE and now_s - begun_s >= seconds:
                    break
                time.sleep(PAUSE_S)
            self._await(self._http_ready, ANSWER_TIMEOUT_S)

    def _give_up_others(self, target: StoredRelease) -> None:
        """Give up what was started beside the running actors on the way to another release: else it would take over."""
        given_up = {}
        for name, actor in self.actors().items():
            planned = actor["replacement"]
            if planned is not None and planned["outcome"] == "under way" and planned["release"] != target.digest:
                if planned["reason"] == "deploy" and self._ask_supervisor("abandon", name):
                    given_up[name] = f"{name}#{planned['generation']}"
        if given_up:
            # Only these: a group that stands half on the way to this very target must not be let go before it is whole.
            self._write(held=[name for name in self._wanted().held if name not in given_up])
            complain(f"given up: {', '.join(given_up.values())}")

    def revive_supervisor(self, blue: StoredRelease) -> None:
        """Make sure that a supervisor works; where the one wanted now does not answer, one of the release before."""
        try:
            self._await(self._supervisor_answers, 2 * ANSWER_TIMEOUT_S)
        except MoveFailed as error:
            complain(f"the supervisor does not work ({error}); going back to the one before")
            self._replace_supervisor(blue, {blue.digest: self._contents(blue)}, Step(""))

    def _make(self, move: Move, target: StoredRelease, known: dict[str, Release], current: Step) -> None:
        match move.deed:
            case Deed.SUPERVISOR:
                self._replace_supervisor(target, known, current)
            case Deed.HTTP:
                update_serving(self._system, known[target.digest], target.folder)
                self._await(self._http_ready, SUPERVISOR_TIMEOUT_S)
                if (answers := http_release(self._system)) != target.digest:
                    raise MoveFailed(f"HTTP answers with release {answers}")
            case Deed.GREEN:
                self._start_greens(move, target)
            case Deed.CUT:
                wanted = self._wanted()
                self._write(held=[name for name in wanted.held if name not in move.replaced])
                self._await_move(move, target, self._planned(move, target), self._policy.drain_timeout_s)
            case Deed.DRAIN:
                wanted = self._wanted()
                self._write(actors={name: path for name, path in wanted.actors.items() if name not in move.gone})
                self._await_move(move, target, {}, self._policy.drain_timeout_s)

    def _replace_supervisor(self, target: StoredRelease, known: dict[str, Release], current: Step) -> None:
        namespace = self._layout.namespace
        pid = None
        try:
            pid = system_status(namespace, ANSWER_TIMEOUT_S)["actors"][0]["pid"]
        except TryAgain as error:
            complain(f"the supervisor does not answer: {error}")
        edge.kill(SUPERVISOR, namespace, pid, pid_space())
        wanted = self._wanted()
        others = {**wanted.releases, wanted.release: Release(wanted.settings, wanted.code), **known}
        base = others.pop(target.digest)
        self._write(
            release=target.digest,
            settings=base.settings,
            code=base.code,
            releases=others,
            # Whoever has no life now, and is not of the target yet, comes back as what it was.
            runs={**dict.fromkeys(wanted.actors, wanted.release), **wanted.runs},
        )
        started: list[int] = []
        failures: list[str] = []

        def is_back() -> Verdict:
            edge.start_supervisor(namespace, str(self._layout.root), base.code)  # found if it lives, else made
            try:
                supervisor = system_status(namespace, ANSWER_TIMEOUT_S)["actors"][0]
            except ActorNotMade as error:
                failures.append(str(error))
                outcome = Outcome.FAILED if len(failures) == SUPERVISOR_TRIES else Outcome.WAITING
                return Verdict(outcome, f"the supervisor: {error}")
            code = supervisor["detail"]["code"]
            if code != target.digest:
                return Verdict(Outcome.FAILED, f"the supervisor's code is of release {code}, not of {target.digest}")
            started[:] = [supervisor["pid"]]
            return self._supervisor_answers()

        self._await(is_back, SUPERVISOR_TIMEOUT_S)
        self._settle()
        current.result = f"pid {started[0]}"

    def _start_greens(self, move: Move, target: StoredRelease) -> None:
        wanted = self._wanted()
        self._write(
            actors={**wanted.actors, **{name: target.actors[name] for name in move.names}},
            runs={**wanted.runs, **dict.fromkeys(move.names, target.digest)},
            held=[*wanted.held, *(name for name in move.replaced if name not in wanted.held)],
        )
        generations = self._planned(move, target)

        def stand() -> Verdict:
            actors = self.actors()
            for name in move.replaced:
                # Not ordered yet, or ordered from a supervisor that was killed before it wrote that down.
                if name not in generations or _is_lost(actors.get(name), generations[name], target.digest):
                    generations.update(self._replace(name, target))
            return judge(move, self.actors(), target.digest, generations)

        self._await(stand, self._policy.start_timeout_s + MARGIN_S)

    def _planned(self, move: Move, target: StoredRelease) -> dict[str, int]:
        """Return name -> generation of the replacements with the target that are under way, maybe by a dead deploy."""
        found = {}
        for name, actor in self.actors().items():
            if name in move.replaced and (planned := _under_way(actor, target.digest)) is not None:
                found[name] = planned
        return found

    def _replace(self, name: str, target: StoredRelease) -> dict[str, int]:
        """Begin a replacement; wait for one that is under way for another reason, memory for example."""
        deadline_s = time.monotonic() + self._policy.start_timeout_s + MARGIN_S
        while True:
            try:
                answer = self._ask_supervisor("replace", name, "deploy", target.digest)
                return {name: int(answer["generation"])}
            except BadInput as error:
                actor = self.actors().get(name)
                if actor is not None and (planned := _under_way(actor, target.digest)) is not None:
                    return {name: planned}
                if actor is not None and actor["detail"].get("code") == target.digest:
                    return {name: actor["generation"]}  # it came up as that meanwhile
                if time.monotonic() > deadline_s:
                    raise MoveFailed(str(error)) from error
                time.sleep(PAUSE_S)

    def _ask_supervisor(self, method: str, *arguments: Any) -> Any:
        def ask() -> Any:
            handle = edge.find(SUPERVISOR, self._layout.namespace)
            return edge.ask(handle, method, *arguments, timeout_s=ANSWER_TIMEOUT_S)

        try:
            return self._patiently(ask)
        except edge.TASK_ERROR as error:
            raise edge.own_error(error) from None

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Ask the supervisor; one that is away is waited for, Ray brings it back within seconds."""
        deadline_s = time.monotonic() + ADOPTION_TIMEOUT_S
        while True:
            try:
                return ask()
            except SupervisorUnavailable:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(PAUSE_S)

    # --- waiting

    def _await_move(self, move: Move, target: StoredRelease, generations: dict[str, int], allowed_s: float) -> None:
        self._await(lambda: judge(move, self.actors(), target.digest, generations), allowed_s + MARGIN_S)

    def _await(self, look: Callable[[], Verdict], timeout_s: float) -> None:
        """Wait until `look` says that it is done; a supervisor that is away is waited for, Ray brings it back.

        Raises:
            MoveFailed: It said that it failed, or took too long.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                verdict = look()
            except TryAgain as error:
                verdict = Verdict(Outcome.WAITING, str(error))
            if verdict.outcome is Outcome.DONE:
                return
            if verdict.outcome is Outcome.FAILED:
                raise MoveFailed(verdict.reason)
            if time.monotonic() > deadline_s:
                raise MoveFailed(f"not within {timeout_s:g} s: {verdict.reason}")
            time.sleep(PAUSE_S)

    def _http_ready(self) -> Verdict:
        ready = self._system.ready()
        return Verdict(Outcome.DONE) if ready else Verdict(Outcome.WAITING, f"{self._system.api_url}/ready is not 200")

    # --- what is wanted

    def _contents(self, release: StoredRelease) -> Release:
        plain = release.settings()
        if plain["kafka"]["bootstrap_servers"] is None:
            plain["kafka"]["bootstrap_servers"] = self._bootstrap
        return Release(json.dumps(plain), str(release.folder))

    def _wanted(self) -> Wanted:
        wanted = read_wanted(self._layout.run)
        if wanted is None or wanted.stopping:
            raise OperatorNeeded("the system is stopped or being stopped: `k2ray up` starts it")
        return wanted

    def _write(self, **changes: Any) -> None:
        write_wanted(self._layout.run, dataclasses.replace(self._wanted(), **changes))

    def _note(self, what: str) -> None:
        self._history.note(what)
        write_history(self._layout, self._history)


def http_release(system: System) -> str:
    """Return the digest of the release that HTTP answers with; empty if it does not answer."""
    try:
        answer = httpx.get(f"{system.api_url}/health", timeout=ANSWER_TIMEOUT_S)
        return str(answer.json().get("release", "")) if answer.status_code == httpx.codes.OK else ""
    except (httpx.HTTPError, ValueError):
        return ""


def _under_way(actor: dict[str, Any], target: str) -> int | None:
    """Return the generation that is proving itself as this release; None if there is none."""
    planned = actor["replacement"]
    if planned is None or planned["outcome"] != "under way" or planned["release"] != target:
        return None
    return int(planned["generation"])


def _is_lost(actor: dict[str, Any] | None, generation: int, target: str) -> bool:
    """Whether the supervisor knows nothing of a replacement that it was told to make."""
    if actor is None or actor["state"] != "running" or actor["detail"].get("code") == target:
        return False
    planned = actor["replacement"]
    return planned is None or planned["generation"] != generation


def _logical(actor: dict[str, Any]) -> str:
    return str(actor["name"]).split("#")[0]
