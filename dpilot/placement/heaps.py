"""Heaps whose entries may be out of date: what has happened to somebody is told to none of the heaps he stands in."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TypeVar

__all__ = ["LazyHeap"]

T = TypeVar("T")

#: No heap as small as this is worth looking through.
_LEAST = 16
#: It is worth it when so many entries in a row are out of date, and were dropped one by one for so many that are there.
_MANY, _FOR_EACH = 16, 8


class LazyHeap(list[T]):
    """A heap for :mod:`heapq` that drops what is out of date whenever it comes up, or the heap has doubled.

    The former alone would keep for ever what never comes up.

    Parameters
    ----------
    is_valid : function
        Whether an entry still tells the truth.
    """

    __slots__ = ("_dropped", "_is_valid", "_most")

    def __init__(self, is_valid: Callable[[T], bool]) -> None:
        super().__init__()
        self._is_valid = is_valid
        self._most = _LEAST
        self._dropped = 0  # one by one, since all were looked at

    def push(self, entry: T) -> None:
        """Add an entry, in constant time on average."""
        heapq.heappush(self, entry)  # type: ignore[type-var]
        if len(self) > self._most:
            self._look_through()

    def first(self) -> T | None:
        """The first entry, which stays; None if there is none."""
        is_valid, row = self._is_valid, 0
        while self:
            entry = self[0]
            if is_valid(entry):
                return entry
            if row >= _MANY and _FOR_EACH * self._dropped >= len(self):
                self._look_through()
                continue
            heapq.heappop(self)  # type: ignore[type-var]
            row += 1
            self._dropped += 1
        return None

    def _look_through(self) -> None:
        self[:] = filter(self._is_valid, self)
        heapq.heapify(self)  # type: ignore[type-var]
        self._most = max(_LEAST, 2 * len(self))
        self._dropped = 0
