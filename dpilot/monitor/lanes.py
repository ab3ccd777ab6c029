"""Lanes for a Gantt chart: one for each slot of a pilot."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["Lane", "lanes"]

#: Clocks of workers that differ by less are taken for the same.
_SAME_S = 1e-3


class Lane(NamedTuple):
    """Where a unit is drawn: in a lane, from when on."""

    lane: int
    began: float


def lanes(spans: Iterable[tuple[float, float, int]], n_slots: int) -> list[list[Lane]]:
    """Give each unit of a pilot as many lanes as it held slots.

    Parameters
    ----------
    spans : iterable of (float, float, int)
        When each unit began and ended, in seconds, and how many slots it held; in the order of their begin.
    n_slots : int
        The pilot's slots: there are no more lanes. A unit that was sent to its worker before the one ahead of it had
        ended, and of which no more is known, is drawn from that one's end on.

    Returns
    -------
    list of list of Lane
        For each unit, one for each of its slots.
    """
    free: list[float] = []  # of each lane: from when on it is
    placed = []
    for began, ended, width in spans:
        found = [lane for lane, at in enumerate(free) if at <= began + _SAME_S][:width]
        while len(found) < width and len(free) < n_slots:
            found.append(len(free))
            free.append(began)
        if len(found) < width:
            found += sorted((lane for lane in range(len(free)) if lane not in found), key=free.__getitem__)
        taken = [Lane(lane, min(ended, max(began, free[lane]))) for lane in found[:width]]
        for lane, _ in taken:
            free[lane] = max(free[lane], ended)
        placed.append(taken)
    return placed
