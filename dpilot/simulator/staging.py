"""Bringing data units to machines: each is brought once, however many units of the machine want it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dpilot.placement import Distance, Site
from dpilot.simulator.network import Network, Transfer
from dpilot.simulator.placement import Placement
from dpilot.simulator.scenario import Scenario

if TYPE_CHECKING:
    from dpilot.simulator.pool import Attempt

__all__ = ["Bringing", "Machine", "Staging"]


class Bringing:
    """A data unit on its way to a machine, and who waits for it there; the first of them had it brought."""

    __slots__ = ("begun_s", "data", "first", "is_kept", "machine", "owner", "source", "transfer", "waiting")

    def __init__(
        self,
        data: int,
        machine: Machine,
        owner: int,
        first: Attempt | None,
        source: Site,
        transfer: Transfer,
        now: float,
    ) -> None:
        self.data = data
        self.first = first  # who had it brought; None: it is brought ahead of all
        self.machine = machine
        self.owner = owner  # the pilot whose worker brings it
        self.source = source
        self.transfer = transfer
        self.begun_s = now
        self.is_kept = True
        self.waiting: list[Attempt] = []


class Machine:
    """What one machine keeps of what was brought to it."""

    __slots__ = ("coming", "kept", "limit_nbytes", "nbytes", "site")

    def __init__(self, site: Site, limit_nbytes: int) -> None:
        self.site = site
        self.limit_nbytes = limit_nbytes
        self.nbytes = 0  # of what is kept or coming
        self.kept: dict[int, int] = {}  # data unit -> how many units use it; the least recently used first
        self.coming: dict[int, Bringing] = {}

    def use(self, data: int) -> None:
        """A unit uses what is kept here, from now on."""
        self.kept[data] = self.kept.pop(data) + 1

    def has_room(self, nbytes: int) -> bool:
        """Whether so much fits beside what is kept."""
        return self.nbytes + nbytes <= self.limit_nbytes

    def make_room(self, nbytes: int, sizes: Sequence[int]) -> list[int] | None:
        """Evict what was not used for longest. Returns what had to go, or None if there is no room to be made."""
        excess = self.nbytes + nbytes - self.limit_nbytes
        if excess <= 0:
            return []
        evicted = []
        for data, users in self.kept.items():
            if excess <= 0:
                break
            if not users:
                evicted.append(data)
                excess -= sizes[data]
        if excess > 0:
            return None
        for data in evicted:
            del self.kept[data]
            self.nbytes -= sizes[data]
        return evicted


class Staging:
    """Brings the inputs of units, one after the other, and takes their outputs to stores.

    Parameters
    ----------
    scenario : Scenario
    policy : Placement
        Told what was brought where, and asked from where to bring.
    network : Network
    at, now : callable
        The clock: see :class:`Network`; and what time it is.
    inputs : sequence of tuple of int
        Of each unit.
    staged : callable
        Called with an attempt when its inputs are all there.
    copied : callable
        Called when the policy hears of a data unit that was brought to a machine.
    """

    def __init__(
        self,
        scenario: Scenario,
        policy: Placement,
        network: Network,
        at: Callable[..., None],
        now: Callable[[], float],
        inputs: Sequence[tuple[int, ...]],
        staged: Callable[[Attempt], None],
        copied: Callable[[], None],
    ) -> None:
        self._policy, self._network, self._at, self._now = policy, network, at, now
        self._inputs, self._staged, self._copied = inputs, staged, copied
        self._data = scenario.data
        self._sizes = [data.nbytes for data in scenario.data]
        # Copies from one datacenter to one machine take over each other's connections, in turn.
        self._turns: dict[tuple[str | None, Site], deque[tuple[Transfer, Site, Site]]] = {}
        self._delay_s = [pilot.delay_s for pilot in scenario.pilots]
        self._peers = scenario.peers
        self._limit_nbytes = scenario.cache_nbytes
        self._where: list[list[Site]] = [
            [scenario.store_of[store].site for store in data.replicas] for data in scenario.data
        ]
        self._cached: list[dict[Site, None]] = [{} for _ in scenario.data]
        self._machines: dict[Site, Machine] = {}
        self._here: dict[int, Machine] = {}  # where the pilots are that are here
        self._of_pilot: list[dict[Bringing, None]] = [{} for _ in scenario.pilots]
        self.copied = [0, 0, 0]  # bytes that were brought ahead of units, by distance
        self.wasted = [0, 0, 0]  # bytes of transfers that were broken off
        for data, sites in enumerate(self._where):
            for site in sites:
                policy.replica(data, site, True)

    def machine(self, pilot: int, site: Site) -> Machine:
        """The machine that a pilot is on: shared with those that bear the same labels."""
        if site not in self._machines:
            self._machines[site] = Machine(site, self._limit_nbytes)
        machine = self._here[pilot] = self._machines[site]
        for data in machine.kept:
            if machine.site not in self._cached[data]:
                self._cached[data][machine.site] = None
                self._policy.replica(data, machine.site, True)
        return machine

    # -- in

    def stage(self, attempt: Attempt) -> None:
        """Go on with the inputs of an attempt: from the first that it does not have yet."""
        machine = attempt.machine
        inputs = self._inputs[attempt.unit]
        while attempt.n_inputs < len(inputs):
            data = inputs[attempt.n_inputs]
            if data in machine.kept:
                self._got(attempt, data)
                continue
            bringing = machine.coming.get(data) or self._bring(data, machine, attempt.pilot, attempt)
            bringing.waiting.append(attempt)
            return
        self._staged(attempt)

    def bring_ahead(self, attempt: Attempt) -> None:
        """Bring all inputs of an attempt that its machine does not have yet, though it has no slots yet."""
        machine = attempt.machine
        for data in self._inputs[attempt.unit]:
            if data not in machine.kept and data not in machine.coming and machine.has_room(self._sizes[data]):
                self._bring(data, machine, attempt.pilot, attempt)

    def _got(self, attempt: Attempt, data: int) -> None:
        early = attempt.early
        _count(attempt, early.pop(data, 0) if early else 0, self._sizes[data])
        attempt.n_inputs += 1
        if data in attempt.machine.kept:
            attempt.machine.use(data)
            if attempt.uses is None:
                attempt.uses = []
            attempt.uses.append(data)

    def drop(self, attempt: Attempt) -> None:
        """An attempt is over: it uses nothing any more."""
        for data in attempt.uses or ():
            attempt.machine.kept[data] -= 1
        for data, distance in (attempt.early or {}).items():
            self.copied[distance] += self._sizes[data]
        attempt.early = None

    def forsake(self, attempt: Attempt) -> None:
        """An attempt was taken back: what it had brought, and nobody else waits for, is broken off."""
        for bringing in list(self._of_pilot[attempt.pilot]):
            if attempt in bringing.waiting:
                bringing.waiting.remove(attempt)
            if bringing.first is attempt and not bringing.waiting:
                del self._of_pilot[attempt.pilot][bringing]
                self._break_off(bringing)

    def _break_off(self, bringing: Bringing) -> None:
        distance = bringing.source.distance(bringing.machine.site)
        self.wasted[distance] += self._network.cancel(bringing.transfer, self._now())
        self._take_turns(bringing.transfer, bringing.source, bringing.machine.site)
        if bringing.is_kept:
            del bringing.machine.coming[bringing.data]
            bringing.machine.nbytes -= self._sizes[bringing.data]
        if bringing.first is None:
            self._policy.replica(bringing.data, bringing.machine.site, False)

    def copy(self, data: int, machine: Machine, owner: int) -> None:
        """Bring a data unit to a machine ahead of the units that will ask for it."""
        if data not in machine.kept and data not in machine.coming and (self._where[data] or self._cached[data]):
            self._bring(data, machine, owner, None)

    def _bring(self, data: int, machine: Machine, owner: int, first: Attempt | None) -> Bringing:
        now = self._now()
        evicted = machine.make_room(self._sizes[data], self._sizes)
        for gone in evicted or ():
            self._forget(gone, machine)
        source = self._source(data, machine.site)
        transfer = Transfer(self._sizes[data], lambda at: self._brought(bringing, at))
        transfer.is_in_turn = first is None and source.distance(machine.site) is Distance.OTHER_DATACENTER
        bringing = Bringing(data, machine, owner, first, source, transfer, now)
        bringing.is_kept = evicted is not None
        if bringing.is_kept:
            machine.nbytes += self._sizes[data]
            machine.coming[data] = bringing
        self._of_pilot[owner][bringing] = None
        self._after_latency(transfer, source, machine.site, self._data[data].n_files)
        return bringing

    def _after_latency(self, transfer: Transfer, source: Site, target: Site, n_files: int) -> None:
        begins = self._now() + self._network.latency_s(source, target, n_files)
        self._at(begins, self._begin, (transfer, source, target))

    def _begin(self, moved: tuple[Transfer, Site, Site]) -> None:
        transfer, source, target = moved
        if transfer.is_over:
            return
        if transfer.is_in_turn:
            turn = self._turns.setdefault((source.datacenter, target), deque())
            turn.append(moved)
            if len(turn) > 1:
                return
        self._network.start(*moved, self._now())

    def _take_turns(self, transfer: Transfer, source: Site, target: Site) -> None:
        """A transfer is over: the next one takes its connections."""
        turn = self._turns.get((source.datacenter, target))
        if not transfer.is_in_turn or not turn:
            return
        was_first = turn[0][0] is transfer
        turn = self._turns[source.datacenter, target] = deque(moved for moved in turn if moved[0] is not transfer)
        if was_first and turn:
            self._network.start(*turn[0], self._now())

    def _source(self, data: int, target: Site) -> Site:
        sites = self._where[data]
        if self._peers and self._cached[data]:
            sites = [*sites, *self._cached[data]]
        if len(sites) == 1:
            return sites[0]
        nearest = min(site.distance(target) for site in sites)
        sites = [site for site in sites if site.distance(target) == nearest]
        if self._peers and nearest is not Distance.SAME_MACHINE:
            # Peers that serve others already come last: so a data unit spreads like a rumour.
            sites.sort(key=lambda site: self._network.active(site, target))
        return sites[0] if len(sites) == 1 else sites[self._policy.source(data, sites, target)]

    def _brought(self, bringing: Bringing, now: float) -> None:
        machine, data = bringing.machine, bringing.data
        self._of_pilot[bringing.owner].pop(bringing, None)
        self._take_turns(bringing.transfer, bringing.source, machine.site)
        distance = bringing.source.distance(machine.site)
        if bringing.is_kept:
            del machine.coming[data]
            machine.kept[data] = 0
            self._cached[data][machine.site] = None
        self._at(now + self._delay_s[bringing.owner], self._hear, (bringing, now - bringing.begun_s))
        first = bringing.first
        if first is None or first.is_over:
            self.copied[distance] += self._sizes[data]
        else:
            first.early = {**(first.early or {}), data: distance}
            first.brought_s = max(first.brought_s, now - bringing.begun_s)
        attempts = [attempt for attempt in bringing.waiting if not attempt.is_over]
        for attempt in attempts:  # all of them hold it before the first goes on to what may evict it
            self._got(attempt, data)
        for attempt in attempts:
            self.stage(attempt)

    def _hear(self, brought: tuple[Bringing, float]) -> None:
        """The scheduler hears what a pilot has brought to its machine, and in how many seconds."""
        bringing, seconds = brought
        machine, data = bringing.machine, bringing.data
        size, n_files = self._sizes[data], self._data[data].n_files
        self._policy.transferred(bringing.source, machine.site, size, n_files, seconds, self._now())
        is_there = machine.site in self._cached[data] or machine.site in self._where[data]
        self._policy.replica(data, machine.site, is_there)
        self._copied()

    def pilot_gone(self, pilot: int) -> None:
        """What a pilot's workers were bringing is not brought; others that wait for it bring it themselves."""
        broken, self._of_pilot[pilot] = self._of_pilot[pilot], {}
        self._close(pilot)
        for bringing in list(broken):
            if bringing.transfer.is_over:  # it has no bytes, and came as another one before it was broken off
                del broken[bringing]
            else:
                self._break_off(bringing)
        for bringing in broken:
            for attempt in bringing.waiting:
                if not attempt.is_over:
                    self.stage(attempt)

    def _close(self, pilot: int) -> None:
        """With the last pilot of a machine goes what could be had of its cache, until another one comes."""
        machine = self._here.pop(pilot)
        if machine not in self._here.values():
            for data in machine.kept:
                self._forget(data, machine)

    def _forget(self, data: int, machine: Machine) -> None:
        """A machine's cache gives a data unit no more; a store there may."""
        self._cached[data].pop(machine.site, None)
        if machine.site not in self._where[data]:
            self._policy.replica(data, machine.site, False)

    # -- out

    def upload(self, attempt: Attempt, nbytes: int, target: Site, done: Callable[[float], None]) -> None:
        """Take what a unit wrote to a store."""
        source = attempt.machine.site
        began = self._now()

        def then(now: float) -> None:
            _count(attempt, source.distance(target), nbytes)
            self._policy.uploaded(source, target, nbytes, now - began, now)
            done(now)

        transfer = Transfer(nbytes, then)
        attempt.upload = transfer, source, target
        self._policy.uploading(source, target, began)
        self._after_latency(transfer, source, target, 1)

    def cancel(self, transfer: Transfer, source: Site, target: Site) -> None:
        """Break an upload off."""
        self.wasted[source.distance(target)] += self._network.cancel(transfer, self._now())
        self._policy.uploaded(source, target, None, 0.0, self._now())

    def written(self, data: int, site: Site) -> None:
        """A data unit is complete at a store."""
        self._where[data].append(site)
        self._policy.replica(data, site, True)


def _count(attempt: Attempt, distance: int, nbytes: int) -> None:
    if attempt.nbytes is None:
        attempt.nbytes = [0, 0, 0]
    attempt.nbytes[distance] += nbytes
