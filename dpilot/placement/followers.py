"""Units that were sent after others, and wait at their workers for these to end: asked back where that lasts."""

from __future__ import annotations

import heapq

from dpilot.placement.bindings import Bindings

__all__ = ["Followers"]

#: So many gaps after the next one was sent, a unit that was about to end is late: a slot that stands idle for one gap
#: then, because the next one was taken back, loses little beside what it runs.
_LATE_GAPS = 10.0
#: Nobody is late within less than this.
_LEAST_S = 0.05


class Followers:
    """Looks after units that should have ended by now, and those behind them.

    What was sent after a unit that is late is asked back, so that it waits for the best slot again, as all others do.

    Parameters
    ----------
    matcher : Bindings
        Whose units they are.
    """

    def __init__(self, matcher: Bindings) -> None:
        self._matcher = matcher
        self._looks: list[tuple[float, str]] = []  # a heap: when which unit is late

    def look(self, now: float) -> list[str]:
        """Units that are to be taken back from their workers, if they have not begun by then."""
        matcher, looks, back = self._matcher, self._looks, list[str]()
        for unit in matcher.left:
            pilot = matcher.pilot_of(unit)
            if pilot is not None:
                heapq.heappush(looks, (now + self._late_s(pilot.slots.gap_s), unit))
        matcher.left.clear()
        while looks and looks[0][0] <= now:
            _, unit = heapq.heappop(looks)
            pilot = matcher.pilot_of(unit)
            if pilot is None or not pilot.slots.is_leaving(unit):
                continue
            follower = pilot.slots.stay(unit, self._late_s(pilot.slots.gap_s))
            matcher.touch(pilot)
            if follower is not None:
                back.append(follower)
        return back

    def next_look(self) -> float | None:
        """When to look next; None: nothing is about to end."""
        return self._looks[0][0] if self._looks else None

    @staticmethod
    def _late_s(gap_s: float) -> float:
        return max(_LATE_GAPS * gap_s, _LEAST_S)
