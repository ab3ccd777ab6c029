"""The units that wait: equal ones in lines, and the lines in the queues of their homes.

Homes are not kept up to date: a line has a version, and is given its home anew when it comes to the head of its queue
and the pilots or links are no longer the same. A replica more or less is told to the lines that read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from dpilot.placement.estimates import RunTimes
from dpilot.placement.fleet import Fleet
from dpilot.placement.homes import choose, is_far, named
from dpilot.placement.lines import TOGETHER_S, Line, Queue, Waiting
from dpilot.placement.places import Need, Pilot, Place, Pool, level_s
from dpilot.placement.policy import Policy
from dpilot.placement.topology import Site
from dpilot.placement.transit import Transit
from dpilot.placement.views import InputView, Request

__all__ = ["Demand"]

#: How many lines are told at once of a replica.
_MOST_TOLD = 64
#: From so many queues on a place forgets those that are empty.
_MANY_QUEUES = 32


class Demand(Fleet):
    """What is asked of the pilots. For the parameters see :class:`~dpilot.placement.matcher.Matcher`."""

    def __init__(
        self,
        policy: Policy | None,
        in_flight_s: float,
        unknown_runtime_s: float,
        inputs: Mapping[str, InputView] | None,
        ahead: bool,
    ) -> None:
        self.ahead = ahead
        self.policy = policy or Policy()
        super().__init__(Transit(self.policy.links), RunTimes(unknown_runtime_s), self.policy.outputs, in_flight_s)
        self.inputs: Mapping[str, InputView] = {} if inputs is None else inputs
        self._lines: dict[Request, Line] = {}
        self._readers: dict[str, Line | dict[Line, None]] = {}  # data unit -> who reads it; mostly it is one
        self._waiting: dict[str, Waiting] = {}
        self._recalled: set[str] = set()  # of these, those that are to be taken back
        self._count = 0

    # -- units

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, unit: str) -> bool:
        return unit in self._waiting

    def submit(self, unit: str, request: Request, *, now: float, priority: float = 0.0, order: float = 0.0) -> None:
        """`unit` is ready to run: its inputs are there. Higher `priority` first, then lower `order`."""
        line = self._lines.get(request)
        self._count += 1
        if line is None:
            line = self._lines[request] = Line(request, self._pool(request), Need.of(request), self._count)
            for du in request.inputs:
                self._read(du, line)
        self._staging.pop(unit, None)
        if unit in self._recalled:
            self._recalled.discard(unit)
            line.is_stuck = True
            if line.queues:
                self._untold[line] = None
        waiting = self._waiting[unit] = Waiting(-priority, order, self._count, unit, now, line)
        line.push(waiting)
        if not line.queues:
            self.stand(line, now)
            return
        line.queues[0].place.count(request.kind, request.slots)
        if line.shares is not None:
            line.shares[0] += 1
        if line.head() is waiting:
            for queue in line.queues:
                queue.push(waiting)
        grown = line.length & (line.length - 1) == 0  # twice as long as when it was last told
        for queue in line.queues:
            if grown:
                queue.push_movable(line)
            self.mark(queue)
        if grown and line.shares is not None:
            self._count_off(line, line.length)
            self._count_in(line)
        if grown and line.is_coming:
            self._want(line, waiting)

    def keep_together(self, line: Line, before: Waiting) -> None:
        """Have the first unit of a line follow one of its units that was bound at home, if it should.

        Where data is brought to other places, the more units it is brought for the better. So those that read what few
        others do any more are run at home, ahead of what is worth more elsewhere. None is overtaken by one that was
        submitted long after it.
        """
        head, queue = line.head(), line.queues[0] if line.queues else None
        if head is None or queue is None or len(line.pool.zones) < 2 or not line.nbytes:
            return
        first = queue.head()
        if (
            first is None
            or first.line is line
            or not head.rank == first.rank == before.rank
            or head.order - first.order > TOGETHER_S
            or line.nbytes_each <= first.line.nbytes_each
        ):
            return
        kept = head._replace(order=before.order, number=before.number)
        line.replace_head(kept)
        self._waiting[head.unit] = kept
        for queue in line.queues:
            queue.push(kept)
            self.mark(queue)

    def withdraw(self, unit: str) -> None:
        """`unit` waits no longer (canceled, or failed)."""
        self._recalled.discard(unit)
        waiting = self._waiting.pop(unit, None)
        if waiting is None:
            return
        line, request = waiting.line, waiting.line.request
        was_head = line.head() is waiting
        self._count_off(line, 1)
        line.shorten(self._waiting)
        head = line.head()
        if head is None:
            for queue in line.queues:
                queue.lines.pop(line, None)
            self._untold.pop(line, None)
            del self._lines[request]
            for du in request.inputs:
                self._unread(du, line)
        for queue in line.queues:
            if was_head and head is not None:
                queue.push(head)
            if queue.reserved_for is waiting:
                self._unreserve(queue.reserved)

    def drop_pool(self, name: str) -> None:
        """No more units are submitted to a pool, or to one pilot directly: forget it, unless some still wait.

        Should one be yet, it is made anew.
        """
        for pools in (self._pools, self._direct):
            pool = pools.get(name)
            if pool is None or any(line.pool is pool for line in self._lines.values()):
                continue
            del pools[name]
            for pilot in list(pool.root.pilots.values()):
                if pilot.reserved is not None and pilot.reserved.pool is pool:
                    self._unreserve(pilot)
                pool.remove(pilot)

    def copied(self, du: str, site: Site, is_there: bool = True) -> None:
        """A data unit was brought ahead of units, or could not be: then units that want it bring it themselves."""
        if self.transit.end_copy(du, site) and not is_there:
            self.transit.fail_copy(du, site, self.policy.links.now)
            for line in list(self.readers(du)):
                if line.is_coming:
                    line.is_late, line.target = True, None
                    self._untold[line] = None

    def data_changed(self, du: str) -> None:
        """A data unit has a replica more or less, or another size: those that wait for it may have another home."""
        readers = self._readers.get(du)
        if readers is None:
            return
        if isinstance(readers, Line):
            self.stand(readers, None)
        elif len(readers) <= _MOST_TOLD:
            for line in readers:
                self.stand(line, None)
        else:
            self._untold.update(readers)

    def _came(self, pilot: Pilot, pool: Pool) -> None:
        zone = pool.zones.get(pilot.site.datacenter)
        if zone is None or any(other.can_carry for other in zone.pilots.values() if other is not pilot):
            return
        for line in list(pool.coming()):
            if not is_far(self.views(line.request), pilot.site):
                line.target = None
                self._untold[line] = None

    def readers(self, du: str) -> Iterable[Line]:
        """The lines that read a data unit."""
        readers = self._readers.get(du, {})
        return (readers,) if isinstance(readers, Line) else readers

    def named(self, line: Line) -> list[Place]:
        """The places that a line's inputs, labels and outputs name."""
        return named(line, self.views(line.request), self.policy)

    def _read(self, du: str, line: Line) -> None:
        before = self._readers.setdefault(du, line)
        if isinstance(before, dict):
            before[line] = None
        elif before is not line:
            self._readers[du] = {before: None, line: None}

    def _unread(self, du: str, line: Line) -> None:
        readers = self._readers.get(du)
        if isinstance(readers, dict):
            readers.pop(line, None)
        if readers is line or readers == {}:
            del self._readers[du]

    # -- where lines stand

    def views(self, request: Request) -> list[InputView]:
        """The inputs of a request as they are now."""
        inputs = self.inputs
        return [inputs[du] for du in request.inputs]

    def lasts_s(self, request: Request) -> float | None:
        """How long a unit runs, as far as is known; None: not known."""
        return self.runtimes.known_s(request.kind) if request.walltime_s is None else request.walltime_s

    def until(self, request: Request, now: float) -> float | None:
        """When a unit that begins now will have ended; None: not known."""
        lasts_s = self.lasts_s(request)
        return None if lasts_s is None else now + lasts_s

    def _version(self, line: Line) -> int:
        # None of these ever falls, so the sum tells of all.
        return line.pool.version + self.policy.links.version + self.outputs.version

    def stand(self, line: Line, now: float | None) -> None:
        """Have a line stand in the queues of its homes as they are now."""
        request, pool, head = line.request, line.pool, line.head()
        assert head is not None, "a line without units was kept"
        views = self.views(request)
        until = None if now is None or not pool.ends else self.until(request, now)
        ahead = self.ahead and line.need.slots == 1 and not line.is_late
        is_stuck_at = partial(self._is_stuck_at, views) if line.is_stuck else None
        homes, visits = choose(line, views, self.policy, until, ahead, is_stuck_at)
        home = homes[0] if homes else pool.nowhere
        may_come = ahead and home is not pool.nowhere and home.keeps
        line.is_coming = home is pool.away or (may_come and is_far(views, home.site))
        line.is_asked = False
        found = [self._queue(place, line) for place in homes or (home,)]
        queues = tuple(found) if len(found) > 1 else found[0].alone
        line.version = self._version(line)
        before = line.queues
        if before != queues or line.shares is not None:
            self._count_off(line, line.length)
            line.queues = queues
            self._count_in(line)
        if before != queues:
            line.nbytes = 0.0
            for view in views:
                line.nbytes += view.nbytes
            for queue in before:
                queue.lines.pop(line, None)
                if queue not in queues and queue.reserved_for is not None and queue.reserved_for.line is line:
                    self._unreserve(queue.reserved)
            for queue in queues:
                if queue.is_coming:
                    queue.lines[line] = None
                if queue not in before or (len(before) > 1) is not (len(queues) > 1):
                    queue.push(head)
                if queue not in before:
                    queue.push_movable(line)
            for weight, place in visits:
                place.visits.push((head.rank, weight, line.number, line))
            if line.is_coming:
                cost_s = 0.0 if home is pool.away else self.policy.fit_s(request, home.site, views)
                pool.late.push((head.since + 2 * (cost_s + self.policy.prefer_wait_s), line.number, line))
        if line.is_coming:
            self._want(line, head)
        for queue in queues:
            self.mark(queue)

    def _count_in(self, line: Line) -> None:
        """Count a line's units as work of its homes: of several, those have most of it that are free first."""
        request, places = line.request, [queue.place for queue in line.queues]
        run_s = self.runtimes.expected_s(request.kind) * request.slots
        if len(places) == 1 or not run_s or not any(place.slots for place in places):
            places[0].count(request.kind, line.length * request.slots)
            return
        tails = [(place.tail_s(self.runtimes), place.slots) for place in places]
        if line.length == 1:  # as most: it is not worth a division
            soonest = tails.index(min(tails))
            shares = [float(number == soonest) for number in range(len(places))]
        else:
            done_s = level_s([tail for tail in tails if tail[1]], line.length * run_s)
            shares = [max(0.0, done_s - tail_s) * slots / run_s if slots else 0.0 for tail_s, slots in tails]
        line.shares = shares
        for place, share in zip(places, shares, strict=True):
            if share:
                place.count(request.kind, share * request.slots)

    def _count_off(self, line: Line, units: int) -> None:
        """So many of a line's units are not its homes' to run any more: nobody knows whose of several they were."""
        request, shares = line.request, line.shares
        if shares is None:
            if line.queues:
                line.queues[0].place.count(request.kind, -units * request.slots)
            return
        part = units / line.length
        for queue, share in zip(line.queues, shares, strict=True):
            if share:
                queue.place.count(request.kind, -part * share * request.slots)
        line.shares = [share * (1 - part) for share in shares] if units < line.length else None

    def _is_stuck_at(self, views: Sequence[InputView], site: Site) -> bool:
        return any(self.transit.is_overdue_near(view.id, site) for view in views)

    def _want(self, line: Line, head: Waiting) -> None:
        """The data of a line has to be brought."""
        line.pool.wanting.push((head.rank, line.nbytes_each, line.number, line))

    def _queue(self, place: Place, line: Line) -> Queue:
        """The queue of a place for lines such as this one.

        Where pilots end, what lasts long must not keep those back that have the time: each kind of work stands alone.
        """
        queues, request = place.coming if line.is_coming else place.queues, line.request
        key = (line.need, request.kind, request.walltime_s) if line.pool.ends else line.need
        queue = queues.get(key)
        if queue is None:
            n_queues = len(queues)
            if n_queues >= _MANY_QUEUES and n_queues & (n_queues - 1) == 0:  # twice as many as when it was last looked
                for other, known in list(queues.items()):
                    if known.head() is None and not known.lines:
                        del queues[other]
            self._count += 1
            queue = queues[key] = Queue(place, line.pool, line.need, self._count, line.is_coming)
        return queue
