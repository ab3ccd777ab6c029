"""What a run would have moved had nobody looked at where its data lay.

Every unit is put on a slot drawn by lot from those of the pilots that could run it, as the slot that comes free next is
a random one to a scheduler that does not look at data (so models it the analysis of delay scheduling: Zaharia et al.,
EuroSys 2010). Each machine brings a data unit once, from the nearest replica that there ever was, and keeps it. So if a
unit lands on machine m with probability p(m), n such units that read data unit d bring it to m with probability
1 - (1 - p(m))^n; the expected bytes are the sum of that over all m and d, times the size of d. Nothing is drawn here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from dpilot.placement import PilotView, Request, Site, feasible
from dpilot.runtime.account import Account, PilotTold

__all__ = ["blind_nbytes"]

#: A machine, by its label or, without one, by the pilot that is on it.
Machine = tuple[str, Site]


def blind_nbytes(account: Account) -> tuple[float, float, float]:
    """Expected bytes of input by how far they would have come: same machine, same datacenter, other datacenter.

    Together they are what the units of the run, as far as they have staged their input, have read indeed.
    """
    pilots = [pilot for pilot in account.pilots if pilot.began is not None]
    stores = {store.id: store.site for store in account.stores}
    data = {told.id: told for told in account.data}
    chances: dict[Request, dict[Machine, float]] = {}
    readers: Counter[tuple[str, Request]] = Counter()
    for unit in account.units:
        if unit.read:
            asks = unit.request._replace(pool="", kind="", inputs=())
            if asks not in chances:
                chances[asks] = _chances(asks, pilots)
            readers.update((du, asks) for du in unit.request.inputs if du in data)
    without: defaultdict[tuple[str, Machine], float] = defaultdict(lambda: 1.0)  # that no reader lands there
    total = 0
    for (du, asks), n in readers.items():
        total += n * data[du].nbytes
        for machine, chance in chances[asks].items():
            without[du, machine] *= (1 - chance) ** n
    moved = [0.0, 0.0, 0.0]
    for (du, (_, site)), chance in without.items():
        sites = [stores[pd] for pd in data[du].placed if pd in stores]
        if sites:
            moved[min(place.distance(site) for place in sites)] += (1 - chance) * data[du].nbytes
    return total - moved[1] - moved[2], moved[1], moved[2]


def _chances(asks: Request, pilots: Iterable[PilotTold]) -> dict[Machine, float]:
    """For each machine, how likely it is that a slot drawn by lot is there."""
    slots: Counter[Machine] = Counter()
    for pilot in pilots:
        view = PilotView(
            pilot.id,
            pilot.site,
            pilot.slots,
            pilot.slots,
            0.0,
            pilot.memory_per_worker_nbytes,
            pilot.gpus_per_worker,
            pilot.walltime_s,
        )
        if feasible(asks, view) is None:
            slots[pilot.site.machine or pilot.id, pilot.site] += pilot.slots
    n = slots.total()
    return {machine: count / n for machine, count in slots.items()}
