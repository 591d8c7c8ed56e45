"""`k2ray deploy`: the installed code and the settings file take over from what runs without a gap, or nothing changes.

1. store what is installed as a release, 2. refuse settings that cannot be changed while a system runs, 3. plan the
moves from what really runs (`actors/deploy.py`), 4. make them (`takeover.py`); a move that fails is taken back, and the
exit status is 1. A deployment that a dead process left half-way is completed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from actors.deploy import Change, Move, changes, plan, refuse_fixed
from actors.history import History, read_history, write_history
from actors.names import wanted_actors
from actors.releases import ReleaseStore, StoredRelease, now, who
from k2ray.cli.console import complain, say, step
from k2ray.cli.system import System
from k2ray.errors import BadInput, OperatorNeeded, RayUnavailable
from k2ray.log.broker import LocalBroker
from k2ray.log.topics import ensure_topics
from k2ray.settings.secrets import mask


@dataclass(frozen=True)
class Standing:
    """A running system that may be deployed to, with what is known of its releases.

    Attributes:
        system: Connected.
        store: Its releases.
        history: Its deployments.
        bootstrap: Kafka's address.
        blue: What runs, or ran before the deployment that was left half-way; None if that was not recorded.
    """

    system: System
    store: ReleaseStore
    history: History
    bootstrap: str
    blue: StoredRelease | None

    def others(self, target: StoredRelease) -> list[StoredRelease]:
        """Return every other release that is kept and whole: any of them may run in some actor."""
        found = []
        for digest in self.store.digests():
            if digest != target.digest:
                try:
                    found.append(self.store.open(digest))
                except OperatorNeeded as error:
                    complain(str(error))
        return found


def deploy(config: Path | None, *, dry_run: bool) -> None:
    """Deploy the installed code with the settings of a file to the system that runs.

    Raises:
        SettingsError: A setting differs that cannot be changed while the system runs.
        OperatorNeeded: It failed; the message says why and that what ran before runs.
        K2rayError: Nothing was begun.
    """
    system = System.load(config)
    with system.alone():
        standing = stand(system)
        if dry_run:
            _explain(standing)
            return
        target = standing.store.make(system.settings, actors_of(system))
        _check(standing, target)
        move_to(standing, target, "deploy", back=False)


def stand(system: System) -> Standing:
    """Connect to the system and read what is known of its releases.

    Raises:
        RayUnavailable: It does not run.
    """
    if system.cluster.running() is None:
        raise RayUnavailable(
            f"nothing runs below {system.layout.root}: `k2ray up` starts it with these settings and code"
        )
    system.cluster.connect()
    history = read_history(system.layout)
    store = ReleaseStore(system.layout)
    blue = None
    if history.running is not None:
        try:
            blue = store.open(history.running)
        except (BadInput, OperatorNeeded) as error:
            complain(f"{error}; a deployment that fails now cannot be taken back")
    return Standing(system, store, history, _bootstrap(system), blue)


def actors_of(system: System) -> dict[str, str]:
    """Return logical name -> class of all actors that the settings ask for."""
    from actors.edge import CHILD_CLASSES

    return {logical: CHILD_CLASSES[logical.split(":", 1)[0]] for logical in wanted_actors(system.settings)}


def move_to(standing: Standing, target: StoredRelease, kind: str, *, back: bool) -> None:
    """Make the target run, and write down how that went.

    Raises:
        OperatorNeeded: It failed; the message says why, and what runs now.
    """
    from k2ray.cli.rollout import Rollout  # imports Ray, which must come after connecting
    from k2ray.cli.takeover import take_over

    system, history = standing.system, standing.history
    half = history.under_way
    if half is not None:
        say(f"k2ray: a {half.kind} of release {half.digest} was left half-way at: {half.step or 'its beginning'}")
    rollout = Rollout(system, standing.bootstrap, history)
    runs = half is None and history.running == target.digest
    if runs and not plan(rollout.running(), target.digest, target.actors):
        say(f"k2ray: release {target.digest} runs already; nothing to do")
        return
    say(f"k2ray: {kind} of release {target.digest} ({history.running or 'an unknown release'} runs)")
    if not back:
        with step("Topics"):
            ensure_topics(standing.bootstrap, system.settings)
    history.begin(target.digest, kind, who(), now())
    write_history(system.layout, history)
    blue = standing.blue if standing.blue is not None and standing.blue.digest != target.digest else None
    take_over(rollout, system, history, target, blue, standing.others(target), back=back)
    standing.store.prune(history.needed(), system.settings.deploy.releases_kept)
    say(f"Release {target.digest} runs. `k2ray rollback` goes back.")


def _check(standing: Standing, target: StoredRelease) -> None:
    if standing.blue is not None:
        refuse_fixed(changes(standing.blue.settings(), target.settings()))


def _bootstrap(system: System) -> str:
    """Return Kafka's address.

    Raises:
        OperatorNeeded: The local broker does not run.
    """
    if system.settings.kafka.bootstrap_servers is not None:
        return system.settings.kafka.bootstrap_servers
    address = LocalBroker(system.layout).status().address
    if address is None:
        raise OperatorNeeded("the local broker does not run: green actors could prove nothing. See `k2ray status`")
    return address.bootstrap


# --- dry run


def _explain(standing: Standing) -> None:
    """Say what a deployment would change, and change nothing."""
    from k2ray.cli.rollout import Rollout

    system, blue = standing.system, standing.blue
    digest = standing.store.digest_now(system.settings)
    if blue is not None and blue.digest == digest and standing.history.under_way is None:
        say(f"k2ray: release {digest} runs already; nothing to do")
        return
    code_now = standing.store.code_now()
    known = blue is not None
    say(f"k2ray: would deploy release {digest} ({blue.digest if blue is not None else 'an unknown release'} runs)")
    if blue is not None:
        say(f"  code: {'the same' if blue.code == code_now else f'{blue.code} -> {code_now}'}")
        differing = changes(blue.settings(), system.settings.model_dump(mode="json"))
        for line in describe(differing):
            say(f"  {line}")
        refuse_fixed(differing)
    running = Rollout(system, standing.bootstrap, standing.history).running()
    for move in plan(running, digest, actors_of(system)):
        say(f"  {_sentence(move)}")
    if not known:
        complain("what runs was not recorded: a deployment that fails could not be taken back")


def describe(differing: list[Change]) -> list[str]:
    """Return a line for each changed setting, secrets masked."""
    lines = []
    for change in differing:
        section, _, leaf = change.name.rpartition(".")
        old, new = (mask(value, leaf) for value in (change.old, change.new))
        lines.append(f"{section}.{leaf}: {old} -> {new}" if section else f"{leaf}: {old} -> {new}")
    return lines


def _sentence(move: Move) -> str:
    return f"would {move}"
