"""A pilot in the run, and the units that are bound to it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from dpilot.placement import Site
from dpilot.simulator.network import Transfer
from dpilot.simulator.placement import Binding
from dpilot.simulator.result import Busy
from dpilot.simulator.scenario import Pilot

if TYPE_CHECKING:
    from dpilot.simulator.staging import Machine

__all__ = ["Attempt", "Pool"]


class Attempt:
    """One time that a unit is bound: it ends with it, or is lost with its pilot."""

    __slots__ = (
        "bound_s", "brought_s", "early", "ended_s", "held", "is_done", "is_over", "machine", "n_inputs", "nbytes",
        "pilot", "ran_s", "ready_s", "slot_s", "started_s", "unit", "upload", "uses",
    )  # fmt: skip

    def __init__(self, binding: Binding, machine: Machine, ready_s: float, now: float) -> None:
        self.unit, self.pilot, self.held = binding
        self.machine = machine
        self.n_inputs = 0  # how many of them it has
        self.nbytes: list[int] | None = None  # of its inputs and outputs, by distance
        self.ready_s, self.bound_s = ready_s, now
        self.slot_s = self.started_s = self.ran_s = self.ended_s = -1.0
        self.is_over = self.is_done = False
        self.brought_s = 0.0  # how long it took to bring what was brought for it, if that was anything
        self.early: dict[int, int] | None = None  # data units that came for it, and it does not use yet: from how far
        self.uses: list[int] | None = None  # data units that its machine keeps for it
        self.upload: tuple[Transfer, Site, Site] | None = None  # the one that is under way, from where and to where


class Pool:
    """A pilot in the run: its free slots, and who waits for them there."""

    __slots__ = ("attempts", "busy", "free", "idle", "is_here", "machine", "queue", "queues", "spec")

    def __init__(self, spec: Pilot) -> None:
        self.spec = spec
        self.is_here = False
        self.machine: Machine | None = None
        self.idle = spec.slots
        self.queue: deque[Attempt] = deque()  # of units that may take any slots
        self.free = [spec.slots_per_worker] * (spec.slots // spec.slots_per_worker)
        self.queues: dict[int, deque[Attempt]] = {}  # of units that are bound to a worker
        self.attempts: dict[Attempt, None] = {}
        self.busy = Busy()
