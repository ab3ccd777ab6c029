"""The home of a line: the place that fits it best but for its queue, by its data and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

from dpilot.placement.lines import Line
from dpilot.placement.places import Place
from dpilot.placement.policy import Policy
from dpilot.placement.topology import ANYWHERE, Distance, Site
from dpilot.placement.views import InputView

__all__ = ["choose", "could_in_time", "is_far", "named"]

#: Places that cost so little more than the best one count as equally good, in seconds.
_EQUAL_S = 1e-6
#: A line has no more homes than this: a unit of any of them is taken from all.
_MOST_HOMES = 8
#: In a pool of more datacenters, those that no input or label names count as alike.
_MOST_ZONES = 16
#: What a byte counts that is so far away, by distance.
_WEIGHT = 0, 1, 10


def named(line: Line, views: Sequence[InputView], policy: Policy) -> list[Place]:
    """The places that a line's inputs, labels and outputs name, those with more in them first."""
    pool, request = line.pool, line.request
    zones, machines = pool.zones, pool.machines
    places: dict[Place, None] = {}
    last: dict[Place, None] = {}
    sites = [site for view in views for site in view.sites]
    if request.site != ANYWHERE:
        sites.append(request.site)
    if request.outputs:
        sites += policy.outputs.sites(request)
    for site in sites:
        datacenter, machine = site
        if datacenter is not None and (zone := zones.get(datacenter)) is not None:
            places[zone] = None
        for place in machines.get(machine, ()) if machine is not None else ():
            if place.site == site or place.site.distance(site) is Distance.SAME_MACHINE:
                last[place] = None
    if None in zones and any(site.datacenter is not None for site in sites):
        places[zones[None]] = None  # nothing is known to be farther away than that
    return [*places, *last]


def is_far(views: Sequence[InputView], site: Site) -> bool:
    """Whether some of the inputs have no replica in the datacenter of a site."""
    return any(view.sites and not any(map(site.is_near, view.sites)) for view in views)


def could_in_time(line: Line, place: Place, policy: Policy, until: float | None) -> bool:
    """Whether a place could run a line until then, and let its outputs leave, before its pilots end."""
    if until is not None:
        until += policy.outputs.cost_s(line.request, place.site)
    return place.could_until(line.need, until)


def choose(
    line: Line,
    views: Sequence[InputView],
    policy: Policy,
    until: float | None,
    ahead: bool = False,
    is_stuck_at: Callable[[Site], bool] | None = None,
) -> tuple[list[Place], list[tuple[float, Place]]]:
    """Where a line should stand.

    Parameters
    ----------
    line : Line
    views : sequence of InputView
        What it reads.
    policy : Policy
    until : float or None
        When its units would end if they began now; None: nobody knows.
    ahead : bool
        Whether its data may be brought to where it stands before a unit of it is bound.
    is_stuck_at : function of Site
        Whether something that it reads has been on its way to a site for much too long.

    Returns
    -------
    homes : list of Place
        The best place; more than one if they are equally good. Empty: no pilot could run it.
    visits : list of (float, Place)
        Other places that have some of its inputs, and how many bytes would have to be brought there.
    """
    pool = line.pool
    could = partial(could_in_time, line, policy=policy, until=until)
    if pool.is_flat:
        return ([pool.root] if could(pool.root) else []), []
    if line.target is not None:
        if line.is_stuck and _has_come(views, named(line, views, policy), line.target):
            line.is_stuck = False
        elif could(line.target):
            places = named(line, views, policy)
            others = [place for place in places if place is not line.target and place.site.machine]
            return [line.target], [(_missing(views, place), place) for place in others]
        line.target = None
    places, outputs = named(line, views, policy), policy.outputs.sites(line.request)
    if line.is_stuck and is_stuck_at is not None and len(pool.zones) <= _MOST_ZONES:
        places += [place for place in pool.zones.values() if place not in places]
        places = [place for place in places if not is_stuck_at(place.site)] or places
    able = [place for place in places if could(place)]
    is_simple = len(views) == 1 and line.request.site == ANYWHERE and not outputs
    if len(able) > 1 and is_simple and not line.is_stuck:
        return _nearest(views[0], able)
    if not able:
        if not could(pool.root):
            return [], []
        # What is nowhere near any of them is to be brought first; what bears no label of a datacenter is near all.
        zones = islice(pool.zones.values(), _MOST_ZONES)
        if ahead and pool.root.keeps and all(is_far(views, zone.site) for zone in zones):
            return [pool.away], []
        if not (outputs or any(view.sites for view in views)) or len(pool.zones) > _MOST_ZONES:
            return [pool.root], []
        able = [place for place in pool.zones.values() if could(place)]
    if len(able) <= 1:
        return able, []
    costs = [policy.fit_s(line.request, place.site, views, alone=True) for place in able]
    least = min(costs) + _EQUAL_S
    homes = [place for place, cost in zip(able, costs, strict=True) if cost <= least]
    if len(homes) > _MOST_HOMES:
        homes = sorted(homes, key=lambda place: place.backlog_s / place.slots)[:_MOST_HOMES]
    homes = [place for place in homes if place.parent not in homes]
    if ahead and len(homes) > 1 and is_far(views, homes[0].site):
        homes = [min(homes, key=lambda place: (place.backlog_s + sum(place.own.values())) / place.slots)]
    others = [place for place in able if place not in homes]
    return homes, [(_missing(views, place), place) for place in others]


def _has_come(views: Sequence[InputView], places: Sequence[Place], target: Place) -> bool:
    """Whether what was sent for anew has come to another place before its target: the copy that lagged was first."""
    return is_far(views, target.site) and not all(is_far(views, place.site) for place in places)


def _nearest(view: InputView, able: Sequence[Place]) -> tuple[list[Place], list[tuple[float, Place]]]:
    """The same for lines that read one data unit: how far it is tells all."""
    machines = [place for place in able if place.site.machine is not None]
    if not machines:
        return list(able[:_MOST_HOMES]), []
    return machines[:_MOST_HOMES], [(float(view.nbytes), place) for place in able if place.site.machine is None]


def _missing(views: Sequence[InputView], place: Place) -> float:
    """Bytes of inputs that are not at a place; those that are not even near it count tenfold."""
    nbytes, target = 0, place.site
    for view in views:
        distance = Distance.OTHER_DATACENTER
        for site in view.sites:
            distance = min(distance, site.distance(target))
        nbytes += view.nbytes * _WEIGHT[distance]
    return float(nbytes)
