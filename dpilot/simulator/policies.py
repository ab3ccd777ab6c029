"""What dpilot's policy is compared with: how other systems place units, each in a few lines.

None of them is the code of the system that it is named after; each has the one idea by which that system chooses.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import cycle

from dpilot.placement import Distance, Site
from dpilot.simulator.placement import Binding, Orders
from dpilot.simulator.scenario import Scenario, Unit

__all__ = ["Base", "Delay", "FlatLabels", "MostBytes", "RandomPilot", "RoundRobin"]


class _Free:
    """Pilots with free slots: adding, removing and drawing one each take one step."""

    def __init__(self) -> None:
        self.pilots: list[int] = []
        self._place: dict[int, int] = {}

    def __contains__(self, pilot: int) -> bool:
        return pilot in self._place

    def add(self, pilot: int) -> None:
        if pilot not in self._place:
            self._place[pilot] = len(self.pilots)
            self.pilots.append(pilot)

    def discard(self, pilot: int) -> None:
        place = self._place.pop(pilot, None)
        if place is not None:
            last = self.pilots.pop()
            if last != pilot:
                self.pilots[place] = last
                self._place[last] = place


class Base:
    """Which pilots are there with how many free slots, and where the data units are."""

    name = "base"
    brings_ahead = False

    def begin(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.random = random.Random(seed)
        self.numbers = {data.id: number for number, data in enumerate(scenario.data)}
        self.sites = [pilot.site for pilot in scenario.pilots]
        self.room: dict[int, int] = {}
        self.free = _Free()
        self.where: list[dict[Site, None]] = [{} for _ in scenario.data]
        self._may_run: dict[tuple[object, ...], list[int]] = {}

    def pilot_expected(self, pilot: int) -> None:
        pass

    def pilot_came(self, pilot: int) -> None:
        self.room[pilot] = self.scenario.pilots[pilot].slots
        self.free.add(pilot)
        self._may_run.clear()

    def pilot_gone(self, pilot: int) -> None:
        del self.room[pilot]
        self.free.discard(pilot)
        self._may_run.clear()

    def ready(self, unit: int, now: float) -> None:
        raise NotImplementedError

    def take(self, unit: int, pilot: int) -> Binding:
        """A unit goes to a pilot."""
        self.room[pilot] -= self.scenario.units[unit].slots
        if self.room[pilot] <= 0:
            self.free.discard(pilot)
        return Binding(unit, pilot)

    def staged(self, unit: int, brought_s: float, now: float) -> None:
        pass

    def ended(self, unit: int, pilot: int, run_s: float) -> None:
        if pilot in self.room:
            self.room[pilot] += self.scenario.units[unit].slots
            if self.room[pilot] > 0:
                self.free.add(pilot)

    def lost(self, unit: int, pilot: int) -> None:
        self.ended(unit, pilot, 0.0)

    def replica(self, data: int, site: Site, is_there: bool) -> None:
        if is_there:
            self.where[data][site] = None
        else:
            self.where[data].pop(site, None)

    def transferred(self, source: Site, target: Site, nbytes: int, n_files: int, seconds: float, now: float) -> None:
        pass

    def uploading(self, source: Site, target: Site, now: float) -> None:
        pass

    def uploaded(self, source: Site, target: Site, nbytes: int | None, seconds: float, now: float) -> None:
        pass

    def source(self, data: int, sources: Sequence[Site], target: Site) -> int:
        return 0

    def may_run(self, unit: Unit) -> list[int]:
        """The pilots that are there and may run a unit. Units that ask for the same get the same list."""
        asks = unit.pilot, unit.slots, unit.affinity, unit.site
        pilots = self._may_run.get(asks)
        if pilots is None:
            pilots = [pilot for pilot in self.room if unit.may_run_on(self.scenario.pilots[pilot])]
            self._may_run[asks] = pilots
        return pilots


# --- bound when they are submitted ---------------------------------------------------------------


class _Early(Base):
    """Gives each unit to a pilot as soon as one is there; it queues at that pilot, however long."""

    def begin(self, scenario: Scenario, seed: int) -> None:
        super().begin(scenario, seed)
        self.waiting: list[tuple[float, int, int]] = []
        self.count = 0

    def ready(self, unit: int, now: float) -> None:
        self.count += 1
        heapq.heappush(self.waiting, (-self.scenario.units[unit].priority, self.count, unit))

    def decide(self, now: float) -> Orders:
        bindings, left = [], []
        while self.waiting:
            entry = heapq.heappop(self.waiting)
            unit = self.scenario.units[entry[2]]
            pilots = self.may_run(unit)
            if pilots:
                bindings.append(self.take(entry[2], self.choose(unit, pilots)))
            else:
                left.append(entry)
        self.waiting = left  # in order, so a heap
        return Orders(bindings)

    def choose(self, unit: Unit, pilots: list[int]) -> int:
        raise NotImplementedError


class RoundRobin(_Early):
    """Every slot in turn, as units are submitted."""

    name = "round-robin"

    def begin(self, scenario: Scenario, seed: int) -> None:
        super().begin(scenario, seed)
        self.turns: dict[tuple[int, ...], Iterator[int]] = {}

    def pilot_came(self, pilot: int) -> None:
        super().pilot_came(pilot)
        self.turns.clear()

    def pilot_gone(self, pilot: int) -> None:
        super().pilot_gone(pilot)
        self.turns.clear()

    def choose(self, unit: Unit, pilots: list[int]) -> int:
        key = tuple(pilots) if len(pilots) < len(self.room) else ()
        if key not in self.turns:
            slots = [
                (n / self.scenario.pilots[p].slots, p) for p in pilots for n in range(self.scenario.pilots[p].slots)
            ]
            self.turns[key] = cycle([pilot for _, pilot in sorted(slots)])
        return next(self.turns[key])


class FlatLabels(_Early):
    """BigJob: a pilot that bears the unit's labels, chosen by lot; if none does, any.

    A unit without labels is given those of the store of its first input, as an expert would write them.
    """

    name = "labels"

    def begin(self, scenario: Scenario, seed: int) -> None:
        super().begin(scenario, seed)
        self.exact: dict[tuple[int, Site], tuple[list[int], list[int]]] = {}

    def pilot_came(self, pilot: int) -> None:
        super().pilot_came(pilot)
        self.exact.clear()

    def pilot_gone(self, pilot: int) -> None:
        super().pilot_gone(pilot)
        self.exact.clear()

    def choose(self, unit: Unit, pilots: list[int]) -> int:
        wanted = unit.site
        if wanted == Site() and unit.inputs:
            wanted = next(iter(self.where[self.numbers[unit.inputs[0]]]), wanted)
        key = (id(pilots), wanted)
        if key not in self.exact:
            exact = [pilot for pilot in pilots if wanted != Site() and wanted.missed_by(self.sites[pilot]) is None]
            self.exact[key] = pilots, exact or pilots  # with the list itself, so that its id stays its own
        return self.random.choice(self.exact[key][1])


# --- bound when a slot is free -------------------------------------------------------------------


class _Late(Base):
    """Gives the first waiting unit to a pilot with free slots. Units that ask for the same wait in one line."""

    def begin(self, scenario: Scenario, seed: int) -> None:
        super().begin(scenario, seed)
        self.lines: dict[tuple[object, ...], list[tuple[float, int, int]]] = {}
        self.count = 0

    def ready(self, unit: int, now: float) -> None:
        self.count += 1
        asks = self.scenario.units[unit]
        key = (asks.pilot, asks.slots, asks.site if asks.affinity == "require" else None)
        heapq.heappush(self.lines.setdefault(key, []), (-asks.priority, self.count, unit))

    def candidates(self, unit: Unit) -> list[int]:
        """Pilots that have room for a unit now."""
        if unit.pilot is None and unit.slots == 1 and unit.affinity != "require":
            return self.free.pilots
        return [
            pilot
            for pilot in self.free.pilots
            if self.room[pilot] >= unit.slots and unit.may_run_on(self.scenario.pilots[pilot])
        ]

    def decide(self, now: float) -> Orders:
        bindings = []
        heads = [(line[0], line) for line in self.lines.values() if line]
        heapq.heapify(heads)
        while heads and self.free.pilots:
            (_, _, number), line = heads[0]
            candidates = self.candidates(self.scenario.units[number])
            if not candidates:  # those who ask for the same do not overtake it
                heapq.heappop(heads)
                continue
            heapq.heappop(line)
            bindings.append(self.take(number, self.choose(self.scenario.units[number], candidates)))
            if line:
                heapq.heapreplace(heads, (line[0], line))
            else:
                heapq.heappop(heads)
        return Orders(bindings)

    def choose(self, unit: Unit, pilots: list[int]) -> int:
        raise NotImplementedError


class RandomPilot(_Late):
    """Any pilot with a free slot, by lot."""

    name = "random"

    def choose(self, unit: Unit, pilots: list[int]) -> int:
        return self.random.choice(pilots)


class MostBytes(_Late):
    """TaskVine and Ray: of the pilots with a free slot, the one that has most bytes of the unit's inputs.

    Bytes on its machine count first, then those in its datacenter; without any, the first pilot.
    """

    name = "most-bytes"

    def begin(self, scenario: Scenario, seed: int) -> None:
        super().begin(scenario, seed)
        self.beside: dict[tuple[Distance, str | None], list[int]] = defaultdict(list)
        for number, site in enumerate(self.sites):
            self.beside[Distance.SAME_MACHINE, site.machine].append(number)
            self.beside[Distance.SAME_DATACENTER, site.datacenter].append(number)

    def choose(self, unit: Unit, pilots: list[int]) -> int:
        may_run = set(pilots) if pilots is not self.free.pilots else self.free
        for distance in (Distance.SAME_MACHINE, Distance.SAME_DATACENTER):
            scores: dict[int, int] = defaultdict(int)
            for data in {self.numbers[du] for du in unit.inputs}:
                near = {
                    pilot: None
                    for site in self.where[data]
                    for pilot in self.beside[distance, _label(site, distance)]
                    if pilot in may_run and site.distance(self.sites[pilot]) == distance
                }
                for pilot in near:
                    scores[pilot] += self.scenario.data[data].nbytes
            if scores:
                return min(scores, key=lambda pilot: (-scores[pilot], pilot))
        return pilots[0]


class Delay(_Late):
    """Delay scheduling: a free slot goes to the first unit whose data is there, else waits for one, up to a limit.

    Zaharia et al., EuroSys 2010: when nothing started on its own machine for `wait_s` seconds, units start in their own
    datacenter, and after as long again anywhere. Units of one kind are a job, in the paper's sense.

    Parameters
    ----------
    wait_s : float
        By default what Spark waits.
    """

    name = "delay"

    def __init__(self, wait_s: float = 3.0) -> None:
        self.wait_s = wait_s

    def begin(self, scenario: Scenario, seed: int) -> None:
        super().begin(scenario, seed)
        self.bound: set[int] = set()
        self.beside: dict[tuple[Distance, str | None], deque[int]] = defaultdict(deque)
        self.local_s: dict[str, float] = {}  # kind -> when one of it started beside its data, or came first

    def ready(self, unit: int, now: float) -> None:
        super().ready(unit, now)
        self.bound.discard(unit)
        asks = self.scenario.units[unit]
        self.local_s.setdefault(asks.kind, now)
        for du in dict.fromkeys(asks.inputs):
            for site in self.where[self.numbers[du]]:
                for distance in (Distance.SAME_MACHINE, Distance.SAME_DATACENTER):
                    self.beside[distance, _label(site, distance)].append(unit)

    def decide(self, now: float) -> Orders:
        bindings: list[Binding] = []
        for distance in (Distance.SAME_MACHINE, Distance.SAME_DATACENTER):
            for pilot in list(self.free.pilots):
                beside = self.beside[distance, _label(self.sites[pilot], distance)]
                bindings += self._fill(pilot, beside, distance, now)
        recheck_s: float | None = None
        for line in self.lines.values():
            while line and self.free.pilots:
                number = line[0][2]
                unit = self.scenario.units[number]
                if number in self.bound:
                    heapq.heappop(line)
                    continue
                waited_s = now - self.local_s[unit.kind]
                candidates = self.candidates(unit)
                if not candidates:
                    break
                if unit.inputs and waited_s < 2 * self.wait_s:
                    wait_s = (self.wait_s if waited_s < self.wait_s else 2 * self.wait_s) - waited_s
                    recheck_s = min(wait_s, recheck_s or wait_s)
                    break
                heapq.heappop(line)
                bindings.append(self._start(number, self.random.choice(candidates)))
        return Orders(bindings, recheck_s=recheck_s)

    def _fill(self, pilot: int, line: deque[int], distance: Distance, now: float) -> Iterator[Binding]:
        """Start units beside their data, in one pilot."""
        skipped = []
        while line and pilot in self.free:
            number = line.popleft()
            unit = self.scenario.units[number]
            if number in self.bound:
                continue
            patient = distance > Distance.SAME_MACHINE and now < self.local_s[unit.kind] + self.wait_s
            if patient or self.room[pilot] < unit.slots or not unit.may_run_on(self.scenario.pilots[pilot]):
                skipped.append(number)
                if patient:
                    break
                continue
            if distance is Distance.SAME_MACHINE:
                self.local_s[unit.kind] = now
            yield self._start(number, pilot)
        line.extendleft(reversed(skipped))

    def _start(self, number: int, pilot: int) -> Binding:
        self.bound.add(number)
        return self.take(number, pilot)


def _label(site: Site, distance: Distance) -> str | None:
    return site.machine if distance is Distance.SAME_MACHINE else site.datacenter
