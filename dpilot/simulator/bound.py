"""How fast any policy could be at best: a makespan that none can beat, and what it is that none can beat.

Each part is a proof by itself; the bound is the largest of them. All of them let every transfer go as fast as its way
ever is, and let data units move before anybody asks for them.

- *unit*: a unit cannot end before its inputs can be anywhere that it may run, and it has run; and so on along the data
  units that units write.
- *slots*: until T, the pilots have only so many slot-seconds for what is submitted from some time on; and on m equal
  slots, k m + 1 units mean that one slot runs k + 1 of them.
- *links*: what a datacenter's slots cannot run of the work on data that lies only there must leave it, or enter the
  others; of all sets of data units with enough work on them, the one with the fewest bytes does so at least. Where a
  unit reads data of several datacenters, at least one of these must cross.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dpilot.placement import Distance, Site
from dpilot.simulator.scenario import Link, Pilot, Scenario, Store, Unit

__all__ = ["Bound", "lower_bound"]

#: How many times of submission are looked at, and how exactly the bound is found.
_MAX_TIMES = 50
_PRECISION = 1e-6


@dataclass(frozen=True, slots=True)
class Bound:
    """A makespan that no policy can beat.

    Parameters
    ----------
    makespan_s : float
    reason : str
        What it follows from: ``"unit"``, ``"slots"`` or ``"links"``.
    """

    makespan_s: float
    reason: str


def lower_bound(scenario: Scenario) -> Bound:
    """A proven lower bound on the makespan of a scenario, whatever the policy.

    Parameters
    ----------
    scenario : Scenario

    Returns
    -------
    Bound
    """
    bounds = [Bound(_unit_bound(scenario), "unit"), Bound(_slots_bound(scenario), "slots")]
    links = _LinksBound(scenario)
    if links.applies:
        bounds.append(Bound(links.bound(max(bound.makespan_s for bound in bounds)), "links"))
    return max(bounds, key=lambda bound: bound.makespan_s)


def _shortest_s(unit: Unit, scenario: Scenario) -> float:
    """How long it runs at the fastest."""
    return unit.run_s / max(pilot.speed for pilot in scenario.pilots)


# --- one unit after the other --------------------------------------------------------------------


class _Ways:
    """How soon a data unit can be at a site, at the best that its way ever is."""

    def __init__(self, scenario: Scenario) -> None:
        self._links = scenario.all_links
        self._scenario = scenario
        self._known: dict[tuple[Site, Site], tuple[float, float]] = {}

    def link(self, source: Site, target: Site) -> tuple[float, float]:
        """The most bandwidth and the least latency that there ever is between two sites."""
        if (source, target) not in self._known:
            distance = source.distance(target)
            far = distance is Distance.OTHER_DATACENTER
            pair = {source.datacenter, target.datacenter} if far else {source.machine, target.machine}
            stated = _from_begin([link for link in self._links if link.between is not None and {*link.between} == pair])
            assumed = _from_begin([link for link in self._links if link.distance is distance])
            # What is assumed holds until the first link that is stated.
            holds = stated if stated and stated[0].from_s == 0 else stated + assumed
            bandwidth = max(link.bandwidth_bytes_per_s for link in holds)
            if far:
                bandwidth = min(bandwidth, self.up(source.datacenter), self.down(target.datacenter))
            if distance is not Distance.SAME_MACHINE:
                bandwidth = min(bandwidth, self.up(source.machine), self.down(target.machine))
            self._known[source, target] = bandwidth, min(link.latency_s for link in holds)
        return self._known[source, target]

    def up(self, label: str | None) -> float:
        """The most that a site ever sends."""
        return self._most([(u.from_s, u.up_bytes_per_s) for u in self._scenario.uplinks if u.site == label])

    def down(self, label: str | None) -> float:
        """The most that a site ever receives."""
        return self._most([(u.from_s, u.down_bytes_per_s) for u in self._scenario.uplinks if u.site == label])

    @staticmethod
    def _most(rates: list[tuple[float, float]]) -> float:
        return max(rate for _, rate in rates) if any(from_s == 0 for from_s, _ in rates) else math.inf

    def transfer_s(self, data: int, sources: Iterable[Site], target: Site) -> float:
        """The least time in which a data unit comes from any of some sites to one."""
        spec = self._scenario.data[data]
        rounds = math.ceil(spec.n_files / self._scenario.files_at_once)
        links = [self.link(source, target) for source in sources]
        return min(latency_s * rounds + spec.nbytes / bandwidth for bandwidth, latency_s in links)


def _from_begin(links: list[Link]) -> list[Link]:
    """The links without those that others have replaced at the very beginning."""
    replaced = sum(link.from_s == 0 for link in links) - 1
    return links[max(0, replaced) :]


def _unit_bound(scenario: Scenario) -> float:
    ways = _Ways(scenario)
    numbers = {data.id: number for number, data in enumerate(scenario.data)}
    sites = {pilot.site: None for pilot in scenario.pilots}
    writers = {du for unit in scenario.units for du in unit.outputs}
    every_store = tuple({store.site: None for store in scenario.stores})
    written_s: dict[str, float] = defaultdict(float)
    asked: dict[tuple[object, ...], list[Pilot]] = {}
    there: dict[tuple[str, Site], float] = {}
    latest_s = 0.0

    def there_s(du: str, target: Site) -> float:
        if (du, target) not in there:
            data = scenario.data[numbers[du]]
            homes = tuple(scenario.store_of[store].site for store in data.replicas)
            if du in writers:
                homes += every_store
            if scenario.peers:
                homes += tuple(site for site in sites if site.machine is not None and site != target)
            there[du, target] = written_s[du] + ways.transfer_s(numbers[du], homes, target)
        return there[du, target]

    for unit in _in_order(scenario):
        asks = (unit.slots, unit.pilot, unit.affinity, unit.datacenter, unit.machine)
        if asks not in asked:
            pilots = [pilot for pilot in scenario.pilots if unit.may_run_on(pilot)]
            best: dict[tuple[Site, float], Pilot] = {}
            for pilot in sorted(pilots, key=lambda pilot: -pilot.arrives_s):
                best[pilot.site, pilot.speed] = pilot  # the first to come
            asked[asks] = list(best.values())
        begins_s = max([unit.submitted_s, *(written_s[du] for du in unit.inputs)])
        ends_s = min(
            max([begins_s, pilot.arrives_s, *(there_s(du, pilot.site) for du in unit.inputs)])
            + unit.run_s / pilot.speed
            for pilot in asked[asks]
        )
        for du in unit.outputs:
            written_s[du] = max(written_s[du], ends_s)
        latest_s = max(latest_s, ends_s)
    return latest_s


def _in_order(scenario: Scenario) -> Iterable[Unit]:
    """The units, each after those that write what it reads."""
    writers: dict[str, int] = defaultdict(int)
    readers: dict[str, list[Unit]] = defaultdict(list)
    for unit in scenario.units:
        for du in unit.outputs:
            writers[du] += 1
    if not writers:
        return scenario.units
    missing = {unit.id: sum(du in writers for du in unit.inputs) for unit in scenario.units}
    for unit in scenario.units:
        for du in unit.inputs:
            readers[du].append(unit)
    able = [unit for unit in scenario.units if not missing[unit.id]]
    for unit in able:  # grows
        for du in unit.outputs:
            writers[du] -= 1
            for reader in readers[du] if not writers[du] else ():
                missing[reader.id] -= 1
                if not missing[reader.id]:
                    able.append(reader)
    return able


# --- slots ---------------------------------------------------------------------------------------


def _capacity(pilots: Iterable[Pilot], begin_s: float, end_s: float) -> float:
    """Seconds of work that pilots can do between two times, in units' own seconds."""
    return sum(
        pilot.slots
        * pilot.speed
        * max(0.0, min(end_s, end_s if pilot.gone_s is None else pilot.gone_s) - max(begin_s, pilot.arrives_s))
        for pilot in pilots
    )


def _least(fits: Callable[[float], bool], from_s: float) -> float:
    """The least time that fits, where any later one does, too; 0 slots for ever fit never and give what was tried."""
    least = most = max(from_s, 1e-9)
    while not fits(most):
        if most > 1e12:
            return from_s
        least, most = most, most * 2
    while most - least > _PRECISION * most:
        middle = (least + most) / 2
        least, most = (least, middle) if fits(middle) else (middle, most)
    return least if least > from_s else from_s


def _slots_bound(scenario: Scenario) -> float:
    units = sorted(scenario.units, key=lambda unit: unit.submitted_s)
    times = sorted({unit.submitted_s for unit in units})
    picked = {times[i * len(times) // min(len(times), _MAX_TIMES)] for i in range(min(len(times), _MAX_TIMES))}
    bound_s, work_s = 0.0, 0.0
    for number in range(len(units) - 1, -1, -1):
        unit = units[number]
        work_s += unit.run_s * unit.slots
        if unit.submitted_s in picked and (not number or units[number - 1].submitted_s < unit.submitted_s):
            begin_s, work = unit.submitted_s, work_s * (1 - 1e-12)
            bound_s = max(
                bound_s,
                _least(lambda end_s: _capacity(scenario.pilots, begin_s, end_s) >= work, begin_s),  # noqa: B023
            )
    # Of the k m + 1 longest units, one slot runs at least k + 1: at the least the k + 1 shortest of them.
    slots = sum(pilot.slots for pilot in scenario.pilots)
    longest = sorted((_shortest_s(unit, scenario) for unit in units), reverse=True)
    first_s = min(pilot.arrives_s for pilot in scenario.pilots)
    for end in range(slots, len(longest), slots):
        rounds = end // slots
        bound_s = max(bound_s, first_s + sum(longest[end - rounds : end + 1]))
    return bound_s


# --- links between datacenters -------------------------------------------------------------------


class _LinksBound:
    """What must cross between datacenters until some time, against what can."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._ways = _Ways(scenario)
        places: list[Pilot | Store] = [*scenario.pilots, *scenario.stores]
        written = any(unit.outputs for unit in scenario.units)
        # Sites without a datacenter's label are not known to be apart from any.
        self.applies = not written and bool(scenario.data) and all(place.datacenter for place in places)
        if not self.applies:
            return
        self._homes = {
            data.id: {scenario.store_of[store].datacenter or "" for store in data.replicas} for data in scenario.data
        }
        self._nbytes = {data.id: data.nbytes for data in scenario.data}
        self._pilots: dict[str, list[Pilot]] = defaultdict(list)
        for pilot in scenario.pilots:
            self._pilots[pilot.datacenter or ""].append(pilot)
        self._names = sorted({place.datacenter or "" for place in places})
        self._readers = [unit for unit in scenario.units if unit.inputs]
        self._tail_s = min((_shortest_s(unit, scenario) for unit in self._readers), default=0.0)
        self._work_on = {name: self._work(name) for name in self._names}
        self._foreign = {name: self._work_from_elsewhere(name) for name in self._names}
        self._crossing = self._least_crossing()

    def _work(self, name: str) -> tuple[float, list[tuple[float, int]]]:
        """Work that cannot be done outside of a datacenter unless data leaves it: in all, and for each data unit."""
        per: dict[str, float] = defaultdict(float)
        for unit in self._readers:
            only = [du for du in unit.inputs if self._homes[du] == {name}]
            if only:
                per[max(only, key=self._nbytes.__getitem__)] += unit.run_s * unit.slots
        return sum(per.values()), _by_worth((work, self._nbytes[du]) for du, work in per.items())

    def _work_from_elsewhere(self, name: str) -> tuple[float, list[tuple[float, int]]]:
        """Work that can be done in a datacenter as it is, and what more, for each data unit that would come."""
        per: dict[str, float] = defaultdict(float)
        here = 0.0
        for unit in self._scenario.units:
            missing = [du for du in unit.inputs if name not in self._homes[du]]
            if missing:
                per[max(missing, key=self._nbytes.__getitem__)] += unit.run_s * unit.slots
            else:
                here += unit.run_s * unit.slots
        return here, _by_worth((work, self._nbytes[du]) for du, work in per.items())

    def _least_crossing(self) -> float:
        """Bytes that must cross as units read what lies nowhere together.

        Each such unit claims bytes of its inputs, and no data unit is claimed for more than it has: so what crosses is
        at least the sum of the claims.
        """
        left = {du: float(nbytes) for du, nbytes in self._nbytes.items()}
        crossing = 0.0
        for unit in self._readers:
            common = set.intersection(*(self._homes[du] for du in unit.inputs))
            if not any(self._pilots[name] for name in common):
                claim = min(left[du] for du in unit.inputs)
                crossing += claim
                for du in set(unit.inputs):
                    left[du] -= claim
        return crossing

    def _rate(self, sources: Iterable[str], targets: Iterable[str]) -> float:
        """The most that can go from some datacenters to others, in bytes per second."""
        rate = 0.0
        targets = list(targets)
        for source in sources:
            out = sum(self._ways.link(Site(source), Site(target))[0] for target in targets if target != source)
            rate += min(out, self._ways.up(source))
        return min(rate, sum(self._ways.down(target) for target in targets))

    def bound(self, from_s: float) -> float:
        """The least makespan, from a time on, in which what must cross can."""
        with_slots = [name for name in self._names if self._pilots[name]]
        outwards = {name: self._rate([name], [other for other in with_slots if other != name]) for name in self._names}
        inwards = {name: self._rate([other for other in self._names if other != name], [name]) for name in with_slots}
        overall = self._rate(self._names, with_slots)

        def fits(end_s: float) -> bool:
            moving_s = max(0.0, end_s - self._tail_s)
            if self._crossing > overall * moving_s:
                return False
            can = {name: _capacity(pilots, 0.0, end_s) for name, pilots in self._pilots.items()}
            for name in self._names:
                work, per = self._work_on[name]
                if _least_nbytes(per, work - can.get(name, 0.0)) > outwards[name] * moving_s:
                    return False
                here, per = self._foreign[name]
                others = sum(seconds for other, seconds in can.items() if other != name)
                total = here + sum(work for work, _ in per)
                if name in inwards and _least_nbytes(per, total - others - here) > inwards[name] * moving_s:
                    return False
            return True

        return _least(fits, from_s)


def _by_worth(items: Iterable[tuple[float, int]]) -> list[tuple[float, int]]:
    """Most work for each byte first."""
    return sorted(items, key=lambda item: item[1] / item[0] if item[0] else math.inf)


def _least_nbytes(per: list[tuple[float, int]], work: float) -> float:
    """The least bytes of data units on which there is so much work, if the last one may be cut."""
    nbytes = 0.0
    for worth, size in per:
        if work <= 1e-9:
            break
        part = min(1.0, work / worth) if worth else 0.0
        nbytes += part * size
        work -= worth
    return nbytes
