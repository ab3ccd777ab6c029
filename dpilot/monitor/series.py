"""Numbers over time in little room: a level, such as slots that are busy, and counts by size."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["DURATIONS_S", "Histogram", "Level"]

#: Upper bounds of the histograms of durations, in seconds.
DURATIONS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3600.0)


class Level:
    """A level that changes now and then, as its means over equal steps of time.

    It covers all the time since its beginning: when its room is used up, two steps are made one.

    Parameters
    ----------
    now : float
        In seconds.
    step_s : float
        The length of the first steps.
    size : int
        How many steps there may be; an even number.
    """

    __slots__ = ("_areas", "_began", "_size", "_step_s", "_used", "_value", "_when")

    def __init__(self, now: float, step_s: float = 0.25, size: int = 240) -> None:
        self._began = now
        self._when = 0.0  # since it began: what is left of the precision of a time since the epoch would not do
        self._step_s = step_s
        self._size = size
        self._areas = array("d", [0.0])  # level times seconds
        self._used = 0  # the step that `_when` is in
        self._value = 0.0

    @property
    def value(self) -> float:
        """The level now."""
        return self._value

    def set(self, value: float, now: float) -> None:
        """The level is another one from now on."""
        self._go_on(now)
        self._value = value

    def add(self, more: float, now: float) -> None:
        """The level has risen, or fallen, by so much."""
        self.set(self._value + more, now)

    def _go_on(self, now: float) -> None:
        to = now - self._began
        while self._when < to:
            end = (self._used + 1) * self._step_s
            if to < end:
                self._areas[self._used] += self._value * (to - self._when)
                self._when = to
                return
            self._areas[self._used] += self._value * max(0.0, end - self._when)
            self._when = end
            self._used += 1
            self._areas.append(0.0)
            if self._used == self._size:
                self._areas = array("d", [a + b for a, b in zip(self._areas[::2], self._areas[1::2], strict=False)])
                self._areas.append(0.0)
                self._used //= 2
                self._step_s *= 2

    def points(self, now: float) -> tuple[list[float], list[float]]:
        """The middles of the steps (seconds since the epoch), and the mean level in each."""
        self._go_on(now)
        times, means = [], []
        for i, area in enumerate(self._areas):
            begin = i * self._step_s
            lasted = min(self._step_s, self._when - begin)
            if lasted > 0:
                times.append(self._began + begin + lasted / 2)
                means.append(area / lasted)
        return times, means


class Histogram:
    """How many values were not greater than each of some bounds."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float] = DURATIONS_S) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    @property
    def n(self) -> int:
        """How many values there were."""
        return sum(self._counts)

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: the bound as text, and how many values were not greater; the last is ``+Inf``."""
        rows, so_far = [], 0
        for bound, count in zip([*self._bounds, "+Inf"], self._counts, strict=True):
            so_far += count
            rows.append((str(bound), float(so_far)))
        return rows
