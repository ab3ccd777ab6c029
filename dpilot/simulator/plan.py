"""What perfect knowledge would do, about: a plan made ahead of a run, and followed by it.

The makespan of a plan is that of its simulation: so it can be reached. It is no optimum; :mod:`~dpilot.simulator.bound`
says how far from one it can be at most.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from dpilot.errors import PlacementError
from dpilot.placement import Distance, Site
from dpilot.simulator.engine import Engine
from dpilot.simulator.placement import Copy, Orders
from dpilot.simulator.policies import Base
from dpilot.simulator.result import Result
from dpilot.simulator.scenario import Scenario

__all__ = ["Plan", "Planned", "make_plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each unit is to run.

    Parameters
    ----------
    pilots : tuple of int
        For each unit, the number of its pilot.
    order : tuple of int
        The data units by how early they are to be copied ahead of the units.
    at_once : int
        How many are copied at the same time over one uplink or downlink.
    """

    pilots: tuple[int, ...]
    order: tuple[int, ...]
    at_once: int = 1


class Planned(Base):
    """Follows a plan: copies data units ahead, few at a time on each uplink and downlink, and starts what is ready.

    Of the units that are ready at a pilot, the one that runs longest starts first. Units whose pilot is gone go to any.
    Where a machine could not keep all data units at once, none is copied ahead: each could make another one go.
    """

    name = "plan"

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def begin(self, scenario: Scenario, seed: int) -> None:
        """Take in the plan."""
        super().begin(scenario, seed)
        self.waiting: defaultdict[int, list[int]] = defaultdict(list)
        self.inputs = [tuple({self.numbers[du]: None for du in unit.inputs}) for unit in scenario.units]
        self.under_way: dict[tuple[int, Site], tuple[object, object]] = {}
        self.copies = sum(data.nbytes for data in scenario.data) <= scenario.cache_nbytes
        self.rank = {data: rank for rank, data in enumerate(self.plan.order)}

    def ready(self, unit: int, now: float) -> None:
        """A unit waits for its pilot of the plan."""
        self.waiting[self.plan.pilots[unit]].append(unit)

    def replica(self, data: int, site: Site, is_there: bool) -> None:
        """A copy may have arrived."""
        super().replica(data, site, is_there)
        self.under_way.pop((data, site), None)

    def pilot_gone(self, pilot: int) -> None:
        """What it was bringing is not brought."""
        super().pilot_gone(pilot)
        for key in [key for key in self.under_way if key[1] == self.sites[pilot]]:
            del self.under_way[key]

    def decide(self, now: float) -> Orders:
        """Start what is ready."""
        bindings = []
        for pilot in sorted(self.room):
            line = self.waiting[pilot]
            line.sort(key=lambda unit: -self.scenario.units[unit].run_s)
            for unit in [unit for unit in line if self._is_there(unit, pilot)]:
                if self.room[pilot] >= self.scenario.units[unit].slots:
                    line.remove(unit)
                    bindings.append(self.take(unit, pilot))
        for gone in [pilot for pilot, line in self.waiting.items() if line and self._will_not_come(pilot, now)]:
            for unit in list(self.waiting[gone]):
                for other in self.may_run(self.scenario.units[unit]):
                    if self.room[other] >= self.scenario.units[unit].slots:
                        self.waiting[gone].remove(unit)
                        bindings.append(self.take(unit, other))
                        break
        return Orders(bindings, list(self._copies()) if self.copies else ())

    def _will_not_come(self, pilot: int, now: float) -> bool:
        return pilot not in self.room and now > self.scenario.pilots[pilot].arrives_s

    def _is_near(self, data: int, site: Site) -> bool:
        return any(source.distance(site) is Distance.SAME_MACHINE for source in self.where[data])

    def _is_there(self, unit: int, pilot: int) -> bool:
        site = self.sites[pilot]
        return site.machine is None or not self.copies or all(self._is_near(data, site) for data in self.inputs[unit])

    def _copies(self) -> Iterable[Copy]:
        wanted = {
            (data, pilot): None
            for pilot in self.room
            for unit in self.waiting[pilot]
            if self.sites[pilot].machine is not None
            for data in self.inputs[unit]
            if not self._is_near(data, self.sites[pilot]) and (data, self.sites[pilot]) not in self.under_way
        }
        busy = Counter(lane for lanes in self.under_way.values() for lane in lanes)
        for data, pilot in sorted(wanted, key=lambda key: (self.rank[key[0]], key)):
            site = self.sites[pilot]
            source = min(self.where[data], key=lambda source: source.distance(site))
            far = source.distance(site) is Distance.OTHER_DATACENTER
            lanes = (("up", source.datacenter), ("down", site.datacenter)) if far else (("up", source), ("down", site))
            if (data, site) not in self.under_way and max(busy[lane] for lane in lanes) < self.plan.at_once:
                busy.update(lanes)
                self.under_way[data, site] = lanes
                yield Copy(data, pilot)


def make_plan(
    scenario: Scenario, *, evaluations: int = 1000, seed: int = 0, begin_with: Iterable[Result] = ()
) -> tuple[Plan, Result]:
    """Look for a good plan: list scheduling that looks ahead, then local search by simulation.

    Parameters
    ----------
    scenario : Scenario
        A small one: every evaluation simulates it once.
    evaluations : int
        How many plans to try.
    seed : int
    begin_with : iterable of Result
        Runs whose assignments, from their traces, are tried first.

    Returns
    -------
    Plan, Result
        The best that was found, and what it gives.
    """
    return _Search(scenario, seed).run(evaluations, begin_with)


class _Search:
    def __init__(self, scenario: Scenario, seed: int) -> None:
        self._scenario = scenario
        self._draw = random.Random(f"plan/{seed}")
        self._may_run = [
            [number for number, pilot in enumerate(scenario.pilots) if unit.may_run_on(pilot)]
            for unit in scenario.units
        ]
        self._readers: defaultdict[str, list[int]] = defaultdict(list)
        for number, unit in enumerate(scenario.units):
            for du in unit.inputs:
                self._readers[du].append(number)

    def run(self, evaluations: int, begin_with: Iterable[Result]) -> tuple[Plan, Result]:
        order = sorted(range(len(self._scenario.data)), key=lambda n: -len(self._readers[self._scenario.data[n].id]))
        starts = [self._greedy(order, stay) for stay in (1.0, 2.0, 4.0)]
        starts += [self._assigned(result) for result in begin_with if result.trace is not None]
        best: tuple[tuple[float, int], Plan, Result] | None = None
        for pilots in starts:
            for at_once in (1, 2):
                best = self._better(Plan(tuple(pilots), tuple(order), at_once), best)
        assert best is not None
        for _ in range(evaluations - 2 * len(starts)):
            best = self._better(self._changed(best[1]), best)
        return best[1], best[2]

    def _better(
        self, plan: Plan, best: tuple[tuple[float, int], Plan, Result] | None
    ) -> tuple[tuple[float, int], Plan, Result]:
        """The plan, if it is no worse than the best so far."""
        try:
            result = Engine(self._scenario, Planned(plan), trace=False).run()
        except PlacementError:
            if best is None:
                raise
            return best
        score = round(result.makespan_s, 9), result.far_nbytes
        return (score, plan, result) if best is None or score <= best[0] else best

    def _assigned(self, result: Result) -> list[int]:
        """Where the units of a run ran."""
        pilots = {pilot.id: number for number, pilot in enumerate(self._scenario.pilots)}
        ran = {row["unit"]: pilots[row["pilot"]] for row in result.trace or () if row["outcome"] == "done"}
        return [ran[unit.id] for unit in self._scenario.units]

    def _greedy(self, order: list[int], stay: float) -> list[int]:
        """Each unit, the longest of the most wanted data first, where it would end first.

        A copy counts `stay` times: for what it takes from those that come later.
        """
        scenario = self._scenario
        data = {item.id: item for item in scenario.data}
        rank = {scenario.data[number].id: place for place, number in enumerate(order)}
        slots = [[pilot.arrives_s] * pilot.slots for pilot in scenario.pilots]
        there: dict[tuple[str, int], float] = {}
        lanes: defaultdict[tuple[str, object], float] = defaultdict(float)
        rate = dict.fromkeys(Distance, 1.0)
        for link in scenario.all_links:
            if link.from_s == 0:
                distances = [link.distance] if link.distance is not None else [Distance.OTHER_DATACENTER]
                for distance in distances:
                    rate[distance] = link.bandwidth_bytes_per_s
        up = {uplink.site: min(uplink.up_bytes_per_s, uplink.down_bytes_per_s) for uplink in scenario.uplinks}
        assigned = [0] * len(scenario.units)

        def copy_s(du: str, pilot: int) -> tuple[float, tuple[tuple[str, object], ...]]:
            """When a data unit would be there, and what would be busy until then."""
            if (du, pilot) in there:
                return there[du, pilot], ()
            site = scenario.pilots[pilot].site
            sources = [scenario.store_of[store].site for store in data[du].replicas]
            if not sources:
                return 0.0, ()
            source = min(sources, key=lambda source: source.distance(site))
            distance = source.distance(site)
            if distance is not Distance.OTHER_DATACENTER:
                return data[du].nbytes / rate[distance], ()
            used = ("up", source.datacenter), ("down", site.datacenter)
            speed = min(rate[distance], up.get(source.datacenter or "", rate[distance]))
            return max(lanes[lane] for lane in used) + data[du].nbytes / speed, used

        def key(number: int) -> tuple[float, float, int]:
            unit = scenario.units[number]
            return min((rank[du] for du in unit.inputs), default=-1), -unit.run_s, number

        for number in sorted(range(len(scenario.units)), key=key):
            unit = scenario.units[number]
            best: tuple[float, int, float] | None = None
            for pilot in self._may_run[number]:
                free_s = sorted(slots[pilot])[unit.slots - 1]
                ways = [copy_s(du, pilot) for du in unit.inputs]
                copied_s = max((at for at, _ in ways), default=0.0)
                ends_s = max(free_s, copied_s, unit.submitted_s) + unit.run_s / scenario.pilots[pilot].speed
                score = ends_s + (stay - 1) * sum(at for at, used in ways if used)
                if best is None or score < best[0]:
                    best = score, pilot, ends_s
            assert best is not None
            _, pilot, ends_s = best
            assigned[number] = pilot
            for du in unit.inputs:
                at, used = copy_s(du, pilot)
                there[du, pilot] = at
                for lane in used:
                    lanes[lane] = at
            slots[pilot] = sorted(slots[pilot])[unit.slots :] + [ends_s] * unit.slots
        return assigned

    def _changed(self, plan: Plan) -> Plan:
        """A plan a little different."""
        pilots, order = list(plan.pilots), list(plan.order)
        kind = self._draw.random()
        unit = self._draw.randrange(len(pilots))
        if kind < 0.35:  # one unit goes elsewhere
            pilots[unit] = self._draw.choice(self._may_run[unit])
        elif kind < 0.6 and self._scenario.units[unit].inputs:  # all that read a data unit at one pilot go elsewhere
            target, source = self._draw.choice(self._may_run[unit]), pilots[unit]
            for other in self._readers[self._draw.choice(self._scenario.units[unit].inputs)]:
                if pilots[other] == source and target in self._may_run[other]:
                    pilots[other] = target
        elif kind < 0.8:  # two swap their places
            other = self._draw.randrange(len(pilots))
            if pilots[other] in self._may_run[unit] and pilots[unit] in self._may_run[other]:
                pilots[unit], pilots[other] = pilots[other], pilots[unit]
        elif order:  # a data unit is copied earlier, or later
            order.insert(self._draw.randrange(len(order)), order.pop(self._draw.randrange(len(order))))
        at_once = self._draw.choice((1, 2, 3)) if kind > 0.95 else plan.at_once
        return Plan(tuple(pilots), tuple(order), at_once)
