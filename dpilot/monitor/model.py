"""What the monitor knows: counts, sums and the newest rows, in bounded memory, changed by what changes.

Nothing here asks how many units there are: each event costs the same whether it is the first or the millionth.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

from dpilot.monitor.series import Histogram, Level
from dpilot.placement import Distance, Site
from dpilot.runtime.records import PilotRecord, UnitRecord
from dpilot.states import State

__all__ = ["LOCALITIES", "NO_INPUT", "Link", "Model", "Pilot", "Run", "link_name", "site_name"]

NO_INPUT = "no input"
#: How far a unit's input had to come, by the distance of the farthest of it.
LOCALITIES = ("same machine", "same datacenter", "other datacenter", NO_INPUT)
_OTHERS = "others"
_BOUND = frozenset({State.Staging, State.Running})


class Run(NamedTuple):
    """A unit that has ended, as a line of the Gantt chart: times are seconds since the epoch."""

    unit: str
    kind: str
    pilot: str
    began: float  # with its staging
    ran: float
    ended: float
    state: str
    locality: str
    slots: int


class Pilot:
    """Of one pilot: what its units are doing, and what they have done."""

    __slots__ = ("bound", "busy", "ended", "run_s", "slots", "stage_s")

    def __init__(self, now: float) -> None:
        self.bound: Counter[State] = Counter()  # Staging, Running
        self.ended: Counter[State] = Counter()
        self.busy = Level(now, size=120)
        self.slots = 0
        self.run_s = Histogram()
        self.stage_s = Histogram()


class Link:
    """Of one link: what was moved on it, and how fast it is moved now."""

    __slots__ = ("failed", "moving", "nbytes", "rate", "seconds", "since")

    def __init__(self) -> None:
        self.nbytes = 0
        self.failed = 0
        self.moving = 0
        self.rate = 0.0  # bytes per second, a running mean
        self.since = 0  # bytes since the rate was worked out last
        self.seconds = Histogram()


class Names:
    """The first so many names; all that come later are one: "others"."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        if name in self._known:
            return name
        if len(self._known) >= self._limit:
            return _OTHERS
        self._known.add(name)
        return name


class Model:
    """Everything that is counted.

    Parameters
    ----------
    now : float
        Seconds since the epoch.
    runs, sites, pilots : int
        How many of the newest runs are kept, how many sites have a name in tables, and how many pilots are kept
        (those that have ended go first).
    """

    def __init__(self, now: float, *, runs: int = 1000, sites: int = 64, pilots: int = 4000) -> None:
        self.began = now
        self.version = 0  # another one whenever a unit, pilot or data unit has changed
        self.units: Counter[State] = Counter()
        self.data: Counter[State] = Counter()
        self.pilot_states: Counter[State] = Counter()
        self.pending: dict[str, UnitRecord] = {}
        self.pilots: dict[str, Pilot] = {}
        self.busy = Level(now)
        self.busy_at: dict[str, Level] = {}  # by datacenter
        self.runs: deque[Run] = deque(maxlen=runs)
        self.n_runs = 0
        self.matrix: dict[tuple[str, str], list[int]] = {}  # data's site, run's site -> runs, bytes
        self.input_nbytes = [0, 0, 0]  # by distance
        self.links: dict[tuple[str, str], Link] = {}
        self._bound_to: dict[str, str] = {}  # unit that is staging or running -> the pilot where it is counted
        self._site = Names(sites)
        self._most_pilots = pilots

    # ---------------------------------------------------------------- units

    def unit_advanced(self, record: UnitRecord, before: State) -> None:
        """A unit is in another state than it was when this was told last; there may have been others between."""
        state, units = record.life.state, self.units
        self.version += 1
        if before is not State.New:
            units[before] -= 1
        units[state] += 1
        if before is State.Pending:
            self.pending.pop(record.id, None)
        elif before in _BOUND:
            pilot = self.pilots.get(self._bound_to.pop(record.id, ""))
            if pilot is not None:
                pilot.bound[before] -= 1
        if state is State.Pending:
            self.pending[record.id] = record
        elif record.pilot is not None:
            pilot = self.pilots.get(record.pilot)
            if pilot is None:
                return
            if state in _BOUND:
                pilot.bound[state] += 1
                self._bound_to[record.id] = record.pilot
            elif record.life.before in _BOUND:
                self._ended(record, pilot)

    def _ended(self, record: UnitRecord, pilot: Pilot) -> None:
        state = record.life.state
        pilot.ended[state] += 1
        when = record.times()
        ended = record.life.since
        began = ended if when.began is None else when.began
        ran = ended if when.ran is None else when.ran
        pilot.run_s.add(ended - ran)
        if record.request.inputs:
            pilot.stage_s.add(record.staged_s)
        self.n_runs += 1
        kind, where = record.request.kind, record.pilot or ""
        self.runs.append(
            Run(record.id, kind, where, began, ran, ended, str(state), locality(record), record.request.slots)
        )

    def read(self, data: str, at: Site, nbytes: int) -> None:
        """A unit that runs at a site has read a data unit from another site, or the same."""
        cell = self.matrix.setdefault((self._site(data), self._site(site_name(at))), [0, 0])
        cell[0] += 1
        cell[1] += nbytes

    # ---------------------------------------------------------------- pilots

    def pilot_advanced(self, record: PilotRecord, before: State, now: float) -> None:
        """A pilot has entered a state."""
        self.version += 1
        state = record.life.state
        if before is not State.New:
            self.pilot_states[before] -= 1
        self.pilot_states[state] += 1
        if record.id not in self.pilots:
            self.pilots[record.id] = Pilot(now)
        if len(self.pilots) > self._most_pilots:
            gone = (id for id, pilot in self.pilots.items() if not pilot.slots and any(pilot.ended.values()))
            self.pilots.pop(next(gone, next(iter(self.pilots))))

    def slots(self, record: PilotRecord, busy: int, slots: int, now: float) -> None:
        """So many of a pilot's slots are taken now, of so many that are there."""
        pilot = self.pilots.get(record.id)
        if pilot is None:
            return
        more = busy - pilot.busy.value
        if more:
            self.version += 1
            pilot.busy.set(busy, now)
            self.busy.add(more, now)
            name = self._site(record.site.datacenter or site_name(record.site))
            if name not in self.busy_at:
                self.busy_at[name] = Level(self.began)
            self.busy_at[name].add(more, now)
        pilot.slots = slots

    # ---------------------------------------------------------------- transfers

    def link(self, source: str, target: str) -> Link:
        """A link by the names of its ends."""
        key = self._site(source), self._site(target)
        link = self.links.get(key)
        if link is None:
            link = self.links[key] = Link()
        return link

    def rates(self, seconds: float) -> None:
        """So many seconds have gone by: work out the rates anew."""
        weight = min(1.0, seconds / 1.0)
        for link in self.links.values():
            if link.since or link.rate:
                link.rate += weight * (link.since / seconds - link.rate)
                link.since = 0
                if link.rate < 1:
                    link.rate = 0.0

    # ---------------------------------------------------------------- what is shown

    def newest_runs(self, since: int) -> Iterator[Run]:
        """The runs after the first `since` of all, as far as they are kept, the oldest first."""
        skip = max(0, len(self.runs) - (self.n_runs - since))
        return (run for i, run in enumerate(self.runs) if i >= skip)


def locality(record: UnitRecord) -> str:
    """How far the input of a unit had to come."""
    if not record.request.inputs:
        return NO_INPUT
    _, near, far = record.nbytes
    return LOCALITIES[2 if far else 1 if near else 0]


def site_name(site: Site) -> str:
    """How a site is called in tables: by its datacenter, else its machine."""
    return site.datacenter or site.machine or "no label"


def link_name(source: Site, target: Site) -> tuple[str, str]:
    """How a link is called, as in :class:`dpilot.placement.LinkRow`: inside of a machine by the machine, twice."""
    if source.distance(target) is Distance.SAME_MACHINE:
        return source.machine or "", source.machine or ""
    return source.datacenter or "", target.datacenter or ""
