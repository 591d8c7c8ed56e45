"""A small pretend world for the reconciler: actors that start, answer, fall silent and die, without Ray."""

from __future__ import annotations

import random
from typing import Any

from actors.lives import Answered, Ask, Attach, Drain, Ended, Instruction, Kill, Listed, Phase, Start
from actors.names import ActorName
from actors.reconciler import Reconciler
from k2ray.settings import Memory, Supervision


class ActorWorld:
    """Carries out a reconciler's instructions on pretend actors.

    `living` maps a name to whether it answers; `health` adds to what a name, or every generation of a logical name,
    answers. Time moves only in `step`.
    """

    def __init__(self, policy: Supervision | None = None, seed: int = 0, memory: Memory | None = None) -> None:
        self.memory = memory
        self.policy = policy or Supervision()
        self.chance = random.Random(seed)
        self.now_s = 100.0
        self.living: dict[ActorName, bool] = {}
        self.ending: set[ActorName] = set()
        self.started: list[ActorName] = []
        self.killed: list[Kill] = []
        self.drained: list[ActorName] = []
        self.attached: list[ActorName] = []
        self.starts_fail: set[str] = set()
        self.health: dict[ActorName | str, dict[str, Any]] = {}
        self.releases: dict[ActorName, str] = {}
        self.reconciler = Reconciler(self.policy, random.Random(seed), memory)

    def restart_supervisor(self, wanted: list[str], epoch: int = 1) -> None:
        memory = self.reconciler.remember()
        self.reconciler = Reconciler(self.policy, random.Random(self.chance.random()), self.memory)
        self.reconciler.recall(memory)
        self.reconciler.want(wanted, epoch)

    def step(self, seconds: float = 0.25) -> list[Instruction]:
        self.now_s += seconds
        self.reconciler.handle(Listed(frozenset(self.living)), self.now_s)
        for name in sorted(self.ending & self.living.keys()):
            self.reconciler.handle(Ended(name, "its work ended by itself"), self.now_s)
        self.ending.clear()
        todo = self.reconciler.decide(self.now_s)
        for instruction in todo:
            self._carry_out(instruction)
        return todo

    def steps(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.step()

    def die(self, name: ActorName, reason: str = "killed") -> None:
        if self.living.pop(name, None) is not None:
            self.reconciler.handle(Ended(name, reason), self.now_s)

    def names(self, logical: str) -> list[ActorName]:
        return sorted(name for name in self.living if name.logical == logical)

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case Start(name, release):
                self.releases[name] = release
                assert name not in self.started, "a name was started twice"
                assert name not in self.living, "a living name was started"
                self.started.append(name)
                if name.logical in self.starts_fail:
                    self.reconciler.handle(Ended(name, "RuntimeError: no"), self.now_s)
                else:
                    self.living[name] = True
            case Attach(name):
                self.attached.append(name)
                if name not in self.living:
                    self.reconciler.handle(Ended(name, "not found"), self.now_s)
            case Ask(name):
                if self.living.get(name):
                    health = {"pid": 1000 + name.generation, "node": "n"}
                    health |= self.health.get(name.logical, {}) | self.health.get(name, {})
                    self.reconciler.handle(Answered(name, health), self.now_s)
            case Drain(name):
                self._assert_followed(name)
                self.drained.append(name)
                if self.living.get(name):
                    self.ending.add(name)
            case Kill(name):
                self.killed.append(instruction)
                self.living.pop(name, None)

    def _assert_followed(self, name: ActorName) -> None:
        child = self.reconciler.children[name.logical]
        if child.wanted and not self.reconciler.stopping:
            others = [life for number, life in child.lives.items() if number != name.generation]
            assert any(life.ready and life.phase is Phase.RUNNING for life in others), "drained for nobody"
