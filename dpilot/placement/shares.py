"""What units hold of workers: slots, memory and GPUs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["Reservation", "Share", "Standing", "WorkerSlots", "spread"]


class Share(NamedTuple):
    """What a unit holds of one worker.

    Parameters
    ----------
    worker : str
    slots : int
    memory_nbytes : int
    gpus : tuple of int
        Numbers of the devices.
    """

    worker: str
    slots: int
    memory_nbytes: int = 0
    gpus: tuple[int, ...] = ()


class Reservation(NamedTuple):
    """What a unit holds, at one or more workers. The first worker runs it."""

    shares: tuple[Share, ...]
    expected_s: float
    several: bool  # whether it asked for more than one slot
    waits: bool = False  # whether it has to wait for the units before it
    follows: bool = False  # whether it was sent after one that was about to end

    @property
    def worker(self) -> str:
        """Address of the worker that runs the unit."""
        return self.shares[0].worker

    @property
    def slots(self) -> tuple[tuple[str, int], ...]:
        """How many slots it holds at which worker."""
        return tuple((share.worker, share.slots) for share in self.shares)


@dataclass(slots=True)
class WorkerSlots:
    """What a worker has, and what of it is taken: :class:`~dpilot.placement.slots.PilotSlots` counts."""

    address: str
    number: int  # in the order of joining
    slots: int
    memory_nbytes: int | None = None  # None: not known
    gpus: int = 0
    free_nbytes: int = 0
    free_gpus: list[int] = field(default_factory=list)
    busy: int = 0
    idle: int = 0  # slots that no unit holds, of a worker that takes units
    backlog_s: float = 0.0
    exclusive: int = 0  # units of more than one slot that are here: nothing may be queued behind their backs
    units: set[str] = field(default_factory=set)
    is_open: bool = True
    changes: int = 0
    leaving: int = 0  # slots that are not counted as busy any more, though their units have not ended
    following: dict[str, None] = field(default_factory=dict)  # units that wait for these, in order
    plain: tuple[Share, ...] = ()  # what a unit holds that asks for a slot and nothing else

    @property
    def vacant(self) -> int:
        """Slots that stand idle indeed."""
        return max(0, self.idle - self.leaving + len(self.following))

    def has(self, memory_nbytes: int, gpus: int) -> bool:
        """Whether so much memory and so many devices are free."""
        return len(self.free_gpus) >= gpus and (self.memory_nbytes is None or self.free_nbytes >= memory_nbytes)

    def begin_next(self, unit: str) -> None:
        """A unit is here no more: one that waited for that runs."""
        if unit in self.following:
            del self.following[unit]
        elif self.following and self.busy + self.leaving - len(self.following) < self.slots:
            del self.following[next(iter(self.following))]


class Standing(NamedTuple):
    """How loaded a worker was after so many changes; sorts by load, then by the order of joining."""

    load: tuple[bool, float, int]
    number: int
    changes: int
    worker: WorkerSlots

    def is_valid(self) -> bool:
        """Whether it has not changed since."""
        return self.changes == self.worker.changes


def spread(
    workers: Iterable[tuple[str, int, int | None, list[int]]], slots: int, memory_nbytes: int, gpus: int
) -> list[Share] | None:
    """Several slots on few hosts and workers, and an even part of the memory with each; None if that cannot be.

    Of each worker is told its address, its slots, its memory (None: not known) and its GPUs.
    """
    shares = []
    part = -(-memory_nbytes // slots)
    found = [(worker[0].rpartition(":")[0], worker) for worker in workers if worker[1] > 0]
    idle_at: dict[str, int] = {}
    for host, (_, idle, _, _) in found:
        idle_at[host] = idle_at.get(host, 0) + idle
    found.sort(key=lambda w: (-len(w[1][3]) * bool(gpus), -idle_at[w[0]], w[0], -w[1][1], w[1][0]))
    for _, (address, idle, free_nbytes, devices) in found:
        take = min(idle, slots)
        if part and free_nbytes is not None:
            take = min(take, free_nbytes // part)
        if take:
            given = tuple(devices[:gpus])
            shares.append(Share(address, take, take * part, given))
            slots -= take
            gpus -= len(given)
        if not slots:
            break
    return None if slots or gpus else shares
