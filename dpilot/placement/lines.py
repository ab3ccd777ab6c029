"""Units that wait: equal ones in a line, lines with one home and one need in a queue."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from dpilot.placement.heaps import LazyHeap
from dpilot.placement.places import Need, Pilot, Place, Pool
from dpilot.placement.views import Request

__all__ = ["TOGETHER_S", "Line", "Queue", "Waiting"]

#: Units that were submitted so much later, in seconds, may be run before others, so that less has to be moved.
TOGETHER_S = 5.0


class Waiting(NamedTuple):
    """A waiting unit; tuples order by priority, then by submission."""

    rank: float
    order: float
    number: int  # no two have the same
    unit: str
    since: float
    line: Line


class Line:
    """Units with equal requests: a decision is taken once for the first, however many stand behind it."""

    __slots__ = (
        "_heap",
        "is_asked",
        "is_coming",
        "is_late",
        "is_stuck",
        "length",
        "nbytes",
        "need",
        "number",
        "pool",
        "queues",
        "request",
        "shares",
        "target",
        "version",
    )

    def __init__(self, request: Request, pool: Pool, need: Need, number: int) -> None:
        self.request = request
        self.pool = pool
        self.need = need
        self.number = number
        self.length = 0
        self.nbytes = 0.0  # what its units read
        self.queues: tuple[Queue, ...] = ()  # of its homes, which are equally good
        self.shares: list[float] | None = None  # how many of its units each of several homes is likely to run
        self.target: Place | None = None  # where its data was sent to, so that it is its home
        self.is_coming = False  # whether its data has yet to come to its home
        self.is_asked = False  # whether it is on its way
        self.is_late = False  # whether it was waited for long enough
        self.is_stuck = False  # whether its data takes much too long: any place may be better
        self.version = -1  # of the pool and the links, when the homes were chosen
        self._heap: list[Waiting] = []

    def push(self, waiting: Waiting) -> None:
        """One unit more."""
        heapq.heappush(self._heap, waiting)
        self.length += 1

    def head(self) -> Waiting | None:
        """The first unit."""
        return self._heap[0] if self._heap else None

    def replace_head(self, head: Waiting) -> None:
        """Have the first unit wait as somebody else, who stands no farther back."""
        heapq.heapreplace(self._heap, head)

    @property
    def nbytes_each(self) -> float:
        """What has to be moved for each of its units, if they are taken to another place."""
        return self.nbytes / self.length

    def shorten(self, waiting: Mapping[str, Waiting]) -> None:
        """One unit less; `waiting` are those that still wait, by name."""
        self.length -= 1
        heap = self._heap
        while heap and waiting.get(heap[0].unit) is not heap[0]:
            heapq.heappop(heap)


class Queue:
    """The lines with one need whose home is one place, in the order of their heads.

    Those that stand in other queues, too, come after those that only stand here, unless they came long before:
    so they are left for the place that has nothing else to do.
    """

    __slots__ = (
        "_heads",
        "_movable",
        "_shared",
        "alone",
        "due",
        "is_coming",
        "key_s",
        "lines",
        "marked",
        "need",
        "number",
        "place",
        "pool",
        "refused",
        "reserved",
        "reserved_for",
    )

    def __init__(self, place: Place, pool: Pool, need: Need, number: int, is_coming: bool = False) -> None:
        self.place = place
        self.is_coming = is_coming  # whether the data of its lines has yet to come
        self.pool = pool
        self.need = need
        self.number = number
        self.marked: Waiting | None = None  # its head when it was last marked
        self.reserved: Pilot | None = None  # whose slots are kept for the head
        self.reserved_for: Waiting | None = None
        self.key_s: float | None = None  # how long it was when it was last put among the pool's busy ones
        self.due: float | None = None  # when it is to be looked at again even if nothing happens
        self.refused: tuple[Hashable, float] | None = None  # when nothing was worth its way, and how long it was then
        self.alone = (self,)  # what lines have that stand in no other
        self.lines: dict[Line, None] = {}  # those whose data is coming
        self._heads: LazyHeap[Waiting] = LazyHeap(self._is_head)
        self._shared: LazyHeap[Waiting] = LazyHeap(self._is_shared_head)
        # Lines, those with the least to move for a unit first, of as much the last to come: the first ones will be run
        # here before it, and of those that read what it reads the most still wait. What is in an entry: rank, bytes a
        # unit, minus the number, line, length.
        self._movable: LazyHeap[tuple[float, float, int, Line, int]] = LazyHeap(self._stands_here)

    def push(self, head: Waiting) -> None:
        """A line whose first unit this is stands here, or has another first one now."""
        if self.is_coming:
            return  # nobody is bound from here
        (self._shared if len(head.line.queues) > 1 else self._heads).push(head)

    def push_movable(self, line: Line) -> None:
        """A line that stands here, and could be taken to another place, is new or has grown."""
        head = line.head()
        if head is not None and self.place.parent is not None and not self.is_coming:
            entry = head.rank, line.nbytes_each, -line.number, line, line.length
            self._movable.push(entry)

    def head(self) -> Waiting | None:
        """The first unit of all its lines."""
        first = self._heads.first()
        if not self._shared or (shared := self._shared.first()) is None:
            return first
        if first is None or (shared.rank, shared.order + TOGETHER_S) < first[:2]:
            return shared
        return first

    def _is_head(self, waiting: Waiting) -> bool:
        line = waiting.line
        return line.length > 0 and line.head() is waiting and line.queues is self.alone

    def _is_shared_head(self, waiting: Waiting) -> bool:
        line = waiting.line
        return line.length > 0 and line.head() is waiting and len(line.queues) > 1 and self in line.queues

    def _stands_here(self, entry: tuple[float, float, int, Line, int]) -> bool:
        return entry[3].length > 0 and self in entry[3].queues

    def lightest(self) -> Waiting | None:
        """The first unit of the line that has the least to move for each unit, of those of the highest priority."""
        return next((line.head() for line in self.movable(1)), None)

    def movable(self, most: int) -> list[Line]:
        """Some lines, those with the least to move for each unit first."""
        heap, found = self._movable, list[tuple[float, float, int, Line, int]]()
        while len(found) < most and (first := heap.first()) is not None:
            line, length = first[3:]
            if line.length < length:
                heapq.heappop(heap)
                self.push_movable(line)
            elif most == 1:
                return [line]
            else:
                entry = heapq.heappop(heap)
                if all(line is not other[3] for other in found):  # it is there twice, if it has grown
                    found.append(entry)
        for entry in found:
            heapq.heappush(heap, entry)
        return [entry[3] for entry in found]
