"""dpilot's own policy in a simulation: the matcher of :mod:`dpilot.placement` itself, driven as the scheduler does.

All that the simulator knows of the matcher is in this module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dpilot.placement import InputView, Links, Matcher, Policy, Request, Site
from dpilot.simulator.placement import Binding, Copy, Orders
from dpilot.simulator.scenario import Scenario, Unit

__all__ = ["Dpilot"]

#: All pilots belong to one service.
_POOL = "simulated"


class Dpilot:
    """Late binding at least cost, with what dpilot learns on the way of links and run times.

    Parameters
    ----------
    links : Links, optional
        What it assumes of links before it has seen a transfer.
    prefer_wait_s, in_flight_s, unknown_runtime_s : float
        As under ``placement`` in ``dpilot.yaml``.
    """

    name = "dpilot"
    brings_ahead = True

    def __init__(
        self,
        links: Links | None = None,
        *,
        prefer_wait_s: float = 5.0,
        in_flight_s: float = 0.05,
        unknown_runtime_s: float = 0.5,
    ) -> None:
        self.links = links or Links()
        policy = Policy(self.links, prefer_wait_s=prefer_wait_s)
        self.matcher = Matcher(policy, in_flight_s=in_flight_s, unknown_runtime_s=unknown_runtime_s, ahead=True)

    def begin(self, scenario: Scenario, seed: int) -> None:
        """Take in what is said beforehand: everything else comes as events."""
        self._units, self._pilots, self._data = scenario.units, scenario.pilots, scenario.data
        self.links.files_at_once = scenario.files_at_once
        self._unit_numbers = {unit.id: number for number, unit in enumerate(scenario.units)}
        self._data_numbers = {data.id: number for number, data in enumerate(scenario.data)}
        self._pilot_numbers = {pilot.id: number for number, pilot in enumerate(scenario.pilots)}
        self._where: list[dict[Site, None]] = [{} for _ in scenario.data]
        self._views: dict[str, InputView] = {}
        self._stores = tuple(dict.fromkeys(store.site for store in scenario.stores))
        writers = Counter(du for unit in scenario.units for du in unit.outputs)
        self._shares = {data.id: data.nbytes // writers[data.id] for data in scenario.data if data.id in writers}
        self.matcher.inputs = self._views
        self._requests: dict[Request, Request] = {}  # equal ones are one object

    def pilot_expected(self, pilot: int) -> None:
        """It starts: its slots are declared."""
        spec = self._pilots[pilot]
        ends_s = None if spec.walltime_s is None else spec.arrives_s + spec.walltime_s
        self.matcher.add_pilot(spec.id, spec.site, spec.slots, ends_at=ends_s)

    def pilot_came(self, pilot: int) -> None:
        """Its workers join."""
        spec = self._pilots[pilot]
        for worker in range(spec.slots // spec.slots_per_worker):
            self.matcher.add_worker(spec.id, f"{worker}", spec.slots_per_worker)

    def pilot_gone(self, pilot: int) -> None:
        """It has ended."""
        self.matcher.remove_pilot(self._pilots[pilot].id)

    def ready(self, unit: int, now: float) -> None:
        """A unit is to be bound."""
        spec = self._units[unit]
        self.matcher.submit(spec.id, self._request(spec), now=now, priority=spec.priority, order=spec.submitted_s)

    def _request(self, unit: Unit) -> Request:
        request = Request(
            _POOL,
            unit.kind,
            unit.slots,
            unit.site,
            unit.affinity == "require",
            unit.pilot,
            unit.inputs,
            outputs=(self._stores,) if unit.outputs else (),
        )
        return self._requests.setdefault(request, request)

    def staged(self, unit: int, brought_s: float, now: float) -> None:
        """Nothing is on its way to it any more; what was brought for it took so long."""
        spec = self._units[unit]
        pilot = self.matcher.pilot_of(spec.id)
        if pilot is not None:
            self._observe_gap(self._pilot_numbers[pilot.name])
        self.matcher.staged(spec.id, brought_s, now=now)

    def ended(self, unit: int, pilot: int, run_s: float) -> None:
        """Its slots are free, and something was learned of its kind."""
        spec = self._units[unit]
        self._observe_gap(pilot)
        self.matcher.release(spec.id)
        self.matcher.observe(spec.kind, run_s)
        if spec.outputs:
            self.matcher.outputs.observe(spec.kind, sum(self._shares[du] for du in spec.outputs))

    def _observe_gap(self, pilot: int) -> None:
        """A message of a pilot's worker shows how long they take there and back."""
        spec = self._pilots[pilot]
        self.matcher.set_gap(spec.id, 2 * spec.delay_s)

    def lost(self, unit: int, pilot: int) -> None:
        """Its pilot has ended before it did."""
        self.matcher.release(self._units[unit].id)

    def replica(self, data: int, site: Site, is_there: bool) -> None:
        """What a machine has in its cache counts as a replica, as in the scheduler."""
        self.matcher.copied(self._data[data].id, site, is_there)
        if is_there:
            self._where[data][site] = None
        else:
            self._where[data].pop(site, None)
        spec = self._data[data]
        self._views[spec.id] = InputView(spec.id, spec.nbytes, spec.n_files, tuple(self._where[data]))
        self.matcher.data_changed(spec.id)

    def transferred(self, source: Site, target: Site, nbytes: int, n_files: int, seconds: float, now: float) -> None:
        """Links learn."""
        self.links.now = now
        self.links.observe(source, target, nbytes, seconds, n_files)

    def uploading(self, source: Site, target: Site, now: float) -> None:
        """As in the scheduler."""
        self.links.now = now
        self.links.begin_output(source, target)

    def uploaded(self, source: Site, target: Site, nbytes: int | None, seconds: float, now: float) -> None:
        """Links learn of this, too."""
        self.links.now = now
        if nbytes is not None:
            self.links.observe_output(source, target, nbytes, seconds)
        self.links.end_output(source, target)

    def source(self, data: int, sources: Sequence[Site], target: Site) -> int:
        """The one that the matcher counts on, else the fastest."""
        chosen = self.matcher.transit.source_of(self._data[data].id, target)
        if chosen in sources:
            return sources.index(chosen)
        return min(range(len(sources)), key=lambda index: (self.links.rank(sources[index], target), index))

    def decide(self, now: float) -> Orders:
        """Ask the matcher."""
        matching = self.matcher.match(now)
        bindings = []
        for binding in matching.bindings:
            reservation = self.matcher.held(binding.unit)
            assert reservation is not None, f"{binding.unit} is bound and holds nothing"
            held = tuple((int(worker), n) for worker, n in reservation.slots)
            number, pilot = self._unit_numbers[binding.unit], self._pilot_numbers[binding.pilot]
            bindings.append(Binding(number, pilot, held))
        copies = [Copy(self._data_numbers[copy.du], self._pilot_numbers[copy.pilot]) for copy in matching.copies]
        recalls = [self._unit_numbers[unit] for unit in matching.recalls]
        returns = [self._unit_numbers[unit] for unit in matching.returns]
        return Orders(bindings, copies, recalls, returns, matching.recheck_s)
