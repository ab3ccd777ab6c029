"""What a run showed: its figures, and what happened to each unit."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpilot.simulator.scenario import Pilot, Scenario

if TYPE_CHECKING:
    import pandas

    from dpilot.simulator.pool import Attempt

__all__ = ["DONE", "LOST", "TAKEN_BACK", "WAITS", "Busy", "Result", "Trace"]

#: What units waited for, in the order of :attr:`Result.waits_s`.
WAITS = ("data", "binding", "slot", "staging", "lost")
#: What became of a unit that was bound: ``"taken back"`` before it ran, to be bound elsewhere.
OUTCOMES = DONE, LOST, TAKEN_BACK = ("done", "lost", "taken back")


class Busy:
    """Slot-seconds of one pilot that were taken, and those of them in which units ran."""

    __slots__ = ("run_s", "taken_s")

    def __init__(self) -> None:
        self.taken_s = self.run_s = 0.0

    def add(self, taken_s: float, run_s: float) -> None:
        """A unit has ended or was lost."""
        self.taken_s += taken_s
        self.run_s += run_s

    def share(self, pilot: Pilot, until_s: float) -> float:
        """The part of its slots' time, until the run's end, in which units ran."""
        here_s = min(until_s, until_s if pilot.gone_s is None else pilot.gone_s) - pilot.arrives_s
        return self.run_s / (here_s * pilot.slots) if here_s > 0 else 0.0


class Trace:
    """What happened to each unit, in the order of their ends: one row for each time that it was bound.

    The columns: ``unit``, ``pilot`` and ``worker`` (its number in the pilot; None: any), ``submitted_s``, ``ready_s``
    (its inputs exist), ``bound_s``, ``slot_s`` (it has its slots, and staging begins), ``started_s``, ``ran_s``,
    ``ended_s`` (its outputs are at their stores), the bytes that it read and wrote by how far they went
    (``local_nbytes``, ``near_nbytes``, ``far_nbytes``), and ``outcome``: ``"done"``, ``"lost"`` with its pilot, or
    ``"taken back"`` before it ran, to be bound elsewhere. A time that was never reached is None.
    """

    COLUMNS = (
        "unit", "pilot", "worker", "submitted_s", "ready_s", "bound_s", "slot_s", "started_s", "ran_s", "ended_s",
        "local_nbytes", "near_nbytes", "far_nbytes", "outcome",
    )  # fmt: skip

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._numbers = array("q")  # unit, pilot, worker, 3 x bytes, outcome
        self._times = array("d")  # from ready_s to ended_s

    def add(self, attempt: Attempt, outcome: str) -> None:
        """One more row."""
        worker = attempt.held[0][0] if attempt.held else -1
        number = OUTCOMES.index(outcome)
        self._numbers.extend((attempt.unit, attempt.pilot, worker, *(attempt.nbytes or (0, 0, 0)), number))
        a = attempt
        self._times.extend((a.ready_s, a.bound_s, a.slot_s, a.started_s, a.ran_s, a.ended_s))

    def __len__(self) -> int:
        return len(self._times) // 6

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in self._rows():
            yield dict(zip(self.COLUMNS, row, strict=True))

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        units, pilots = self._scenario.units, self._scenario.pilots
        numbers, times = iter(self._numbers), iter(self._times)
        for unit, pilot, worker, *nbytes, outcome in zip(*[numbers] * 7, strict=True):
            reached = [time if time >= 0 else None for time in (next(times) for _ in range(6))]
            yield (
                units[unit].id, pilots[pilot].id, worker if worker >= 0 else None, units[unit].submitted_s,
                *reached, *nbytes, OUTCOMES[outcome],
            )  # fmt: skip

    def to_csv(self, path: str | Path) -> None:
        """Write it as a table with a header."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.COLUMNS)
            writer.writerows(self._rows())

    def to_json(self, path: str | Path) -> None:
        """Write it as JSON lines: one object for each row."""
        with Path(path).open("w", encoding="utf-8") as file:
            for row in self:
                file.write(json.dumps(row) + "\n")

    def to_frame(self) -> pandas.DataFrame:
        """It as a data frame; pandas must be installed."""
        import pandas

        return pandas.DataFrame(self._rows(), columns=list(self.COLUMNS))


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one run.

    Parameters
    ----------
    scenario, policy : str
    n_units : int
    makespan_s : float
        When the last unit ended.
    flow_s : float
        Mean time from a unit's submission to its end.
    nbytes : tuple of 3 int
        Bytes that units read and wrote, or that were brought ahead of them, by
        :class:`~dpilot.placement.topology.Distance`. What a machine has already is local.
    wasted_nbytes : tuple of 3 int
        The same of transfers that were broken off, as a pilot ended; not in `nbytes`.
    waits_s : tuple of 5 float
        Mean time that a unit waited: until its inputs existed, until it was bound, until its pilot had a slot for it,
        until its inputs were staged; and what was lost with pilots, or by what was taken back. With the time that it
        ran and wrote its outputs, these add up to `flow_s`.
    utilisation : tuple of float
        For each pilot, the part of its slots' time in which units ran.
    n_lost : int
        How often a unit was lost with its pilot.
    n_events : int
        Events that the clock went through.
    trace : Trace or None
    """

    scenario: str
    policy: str
    n_units: int
    makespan_s: float
    flow_s: float
    nbytes: tuple[int, ...]
    wasted_nbytes: tuple[int, ...]
    waits_s: tuple[float, ...]
    utilisation: tuple[float, ...]
    n_lost: int
    n_events: int
    trace: Trace | None = field(default=None, repr=False, compare=False)

    @property
    def far_nbytes(self) -> int:
        """Bytes that went from one datacenter to another, in vain or not."""
        return self.nbytes[2] + self.wasted_nbytes[2]
