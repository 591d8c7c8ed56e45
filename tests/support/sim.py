"""A simulated exchange as a subprocess, for any test: free port, its own CA folder, gone at the end."""

from __future__ import annotations

from k2ray.sim.process import Sim
from k2ray.sim.process import running_sim as start_sim

__all__ = ["Sim", "start_sim"]
