"""Units that are sent after others, so that they are there when these end: asked back where they wait for too long.

Where messages take long, or data, a slot would stand idle from when a unit has ended until the next one has come, and
has brought what it reads.
"""

from __future__ import annotations

import heapq

from dpilot.placement.bindings import Bindings

__all__ = ["Followers"]

#: So many gaps after the next one should have come, a unit that was about to end is late: a slot that stands idle for
#: one gap then, because the next one was taken back, loses little beside what it runs.
_LATE_GAPS = 10.0
#: Where more than so many wait for each slot, it is no matter whose end the next one waits for; what is so short that
#: it is queued does not depend on that.
_QUEUE = 0.5
#: Nobody is late within less than this.
_LEAST_S = 0.05


class Followers:
    """Says when units are about to end, so that the next ones can be sent, and looks after those that do not.

    What was sent after a unit that is late is asked back, so that it waits for the best slot again, as all others do.
    So the next one may follow the first units of a kind, too, of which nobody knows how long they run.

    Parameters
    ----------
    matcher : Bindings
        Whose units they are.
    """

    def __init__(self, matcher: Bindings) -> None:
        self._matcher = matcher
        self._ends: list[tuple[float, int, str]] = []  # a heap: when the next one may be sent after which unit
        self._expected: dict[str, int] = {}  # unit -> the number of its entry there
        self._count = 0
        self._looks: list[tuple[float, str]] = []  # a heap: when which unit is late

    def send(self, now: float) -> None:
        """Let the next ones be sent after the units that are about to end by now."""
        matcher, ends = self._matcher, self._ends
        while ends and ends[0][0] <= now:
            _, number, unit = heapq.heappop(ends)
            if self._expected.get(unit) == number:  # else it was bound anew since then
                del self._expected[unit]
                matcher.leave(unit)

    def _expect(self, now: float) -> None:
        """Work out when those will be about to end that have begun."""
        matcher = self._matcher
        for unit, kind, late_s in matcher.begun:
            pilot = matcher.pilot_of(unit)
            if pilot is None:
                continue
            gap_s, bring_s = pilot.slots.gap_s, pilot.slots.bring_s
            is_queueing = matcher.runtimes.expected_s(kind) >= matcher.in_flight_s and pilot.rounds > _QUEUE
            run_s = matcher.runtimes.follow_s(kind, gap_s, bring_s, is_queueing)
            if run_s is None:
                continue
            if run_s:
                run_s += matcher.outputs.taking_s(unit)
            # One that was bound just now ends half a gap later than that, for so long is its way, and that of the next
            # one. One that says that it has its inputs began half a gap ago, or longer if that is heard late, and the
            # next one has yet to bring its own.
            wait_s = (run_s or gap_s) if late_s is None else run_s - gap_s - late_s - max(gap_s, bring_s)
            self._count += 1
            self._expected[unit] = self._count
            heapq.heappush(self._ends, (now + max(0.0, wait_s), self._count, unit))
        matcher.begun.clear()

    def look(self, now: float) -> None:
        """Take in which units have begun, or are about to end, since the last time."""
        self._expect(now)
        matcher = self._matcher
        for unit in matcher.left:
            pilot = matcher.pilot_of(unit)
            if pilot is not None:
                slots = pilot.slots
                heapq.heappush(self._looks, (now + slots.bring_s + self._late_s(slots.gap_s), unit))
        matcher.left.clear()

    def take_back(self, now: float) -> list[str]:
        """Units that are to be taken back from their workers, if they have not begun by then."""
        matcher, looks, back = self._matcher, self._looks, list[str]()
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
        return min((heap[0][0] for heap in (self._ends, self._looks) if heap), default=None)

    @staticmethod
    def _late_s(gap_s: float) -> float:
        return max(_LATE_GAPS * gap_s, _LEAST_S)
