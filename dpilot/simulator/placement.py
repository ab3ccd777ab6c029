"""What a policy is to the simulator: told what happens, asked what to bind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from dpilot.placement import Site
from dpilot.simulator.scenario import Scenario

__all__ = ["Binding", "Copy", "Orders", "Placement"]


class Binding(NamedTuple):
    """A unit goes to a pilot; units, pilots and data units are said by their number in the scenario.

    ``held`` are the workers (by their number within the pilot) whose slots it takes, and how many of each; it queues
    behind what these were given before. Without it, it queues at the pilot and takes any slots there. A policy names
    workers always or never.
    """

    unit: int
    pilot: int
    held: tuple[tuple[int, int], ...] = ()


class Copy(NamedTuple):
    """A data unit is to be brought to the cache of a pilot's machine before a unit asks for it."""

    data: int
    pilot: int


class Orders(NamedTuple):
    """What is to be done now, and after how many seconds to ask again even if nothing happens by then.

    ``recalls`` are units that are bound and have not begun to run: they are taken back, and are :meth:`Placement.lost`.
    ``returns`` are units that wait for slots at their pilots: where that is still so when the message is there, they
    are given back, and are :meth:`Placement.lost` when the pilot's message is here.
    """

    bindings: Sequence[Binding] = ()
    copies: Sequence[Copy] = ()
    recalls: Sequence[int] = ()
    returns: Sequence[int] = ()
    recheck_s: float | None = None


class Placement(Protocol):
    """A policy: events in, orders out. An object of it serves one run.

    Whatever happens at one moment is told first; then :meth:`decide` is asked once. A policy sees all of the scenario,
    and is expected to look at nothing that would not be known in practice: run times, for one, and what is still to
    come.

    Attributes
    ----------
    name : str
        What it is called in results and messages.
    brings_ahead : bool
        Whether inputs are brought from when a unit reaches its pilot, though it may have to wait for its slots there.
    """

    name: str
    brings_ahead: bool

    def begin(self, scenario: Scenario, seed: int) -> None:
        """The run begins, without any pilot, unit or replica yet."""

    def pilot_expected(self, pilot: int) -> None:
        """A pilot was submitted: it will come at some time."""

    def pilot_came(self, pilot: int) -> None:
        """Its workers are there, and all of its slots free."""

    def pilot_gone(self, pilot: int) -> None:
        """It has ended; those that were bound to it are :meth:`lost` next."""

    def ready(self, unit: int, now: float) -> None:
        """A unit was submitted and its inputs exist, or it was lost: it is to be bound."""

    def staged(self, unit: int, brought_s: float, now: float) -> None:
        """A unit's inputs are there, and it runs; bringing what was brought for it took so long."""

    def ended(self, unit: int, pilot: int, run_s: float) -> None:
        """A unit has ended and its slots are free; it had run for so long, staging not counted."""

    def lost(self, unit: int, pilot: int) -> None:
        """A unit's pilot ended before it did, or it was recalled; it is :meth:`ready` again right after."""

    def replica(self, data: int, site: Site, is_there: bool) -> None:
        """A store or a labelled machine has a data unit now, or has it no longer."""

    def transferred(self, source: Site, target: Site, nbytes: int, n_files: int, seconds: float, now: float) -> None:
        """A data unit was brought from one site to another, in so many seconds, latency included."""

    def uploading(self, source: Site, target: Site, now: float) -> None:
        """A unit begins to write to a store."""

    def uploaded(self, source: Site, target: Site, nbytes: int | None, seconds: float, now: float) -> None:
        """It has written so much, in so many seconds; None: it was broken off."""

    def source(self, data: int, sources: Sequence[Site], target: Site) -> int:
        """Which of several replicas to bring a data unit from: the index of its site. All are equally near.

        Those come first of which the busiest part of their way serves the fewest others.
        """

    def decide(self, now: float) -> Orders:
        """What is to be done now."""
