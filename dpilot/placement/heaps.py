"""Heaps whose entries may be out of date: what has happened to somebody is told to none of the heaps he stands in."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TypeVar

__all__ = ["LazyHeap"]

T = TypeVar("T")

#: No heap as small as this is worth looking through.
_LEAST = 16


class LazyHeap(list[T]):
    """A heap for :mod:`heapq` that drops what is out of date whenever it has doubled.

    Who pops from it drops what comes up out of date himself. That alone would keep for ever what never comes up.

    Parameters
    ----------
    is_valid : function
        Whether an entry still tells the truth.
    """

    __slots__ = ("_is_valid", "_most")

    def __init__(self, is_valid: Callable[[T], bool]) -> None:
        super().__init__()
        self._is_valid = is_valid
        self._most = _LEAST

    def push(self, entry: T) -> None:
        """Add an entry, in constant time on average."""
        heapq.heappush(self, entry)  # type: ignore[type-var]
        if len(self) > self._most:
            self[:] = filter(self._is_valid, self)
            heapq.heapify(self)  # type: ignore[type-var]
            self._most = max(_LEAST, 2 * len(self))
