"""Run scenarios, set policies beside each other, and ask what a change would bring."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dpilot.descriptions import did_you_mean
from dpilot.errors import DescriptionError
from dpilot.simulator.bound import Bound, lower_bound
from dpilot.simulator.engine import Engine
from dpilot.simulator.own import Dpilot
from dpilot.simulator.placement import Placement
from dpilot.simulator.plan import make_plan
from dpilot.simulator.policies import Delay, FlatLabels, MostBytes, RandomPilot, RoundRobin
from dpilot.simulator.result import Result
from dpilot.simulator.scenario import Link, Pilot, Scenario

__all__ = ["POLICIES", "Comparison", "WhatIf", "compare", "simulate", "what_if"]

#: The policies by their names.
POLICIES: dict[str, Callable[[], Placement]] = {
    "random": RandomPilot,
    "round-robin": RoundRobin,
    "labels": FlatLabels,
    "most-bytes": MostBytes,
    "delay": Delay,
    "dpilot": Dpilot,
}

#: Scenarios of more units are not planned unless it is asked for: every step of the search simulates them.
_PLANNED_UNITS = 300


def simulate(
    scenario: Scenario, policy: str | Placement = "dpilot", *, seed: int | None = None, trace: bool = True
) -> Result:
    """Run a scenario under a policy, without any cluster.

    Parameters
    ----------
    scenario : Scenario
    policy : str or Placement
        One of :data:`POLICIES`, or an object of your own; it serves one run.
    seed : int, optional
        By default the scenario's. The same scenario, policy and seed give the same result.
    trace : bool
        Whether to keep what happened to each unit: some 100 bytes each.

    Returns
    -------
    Result

    Raises
    ------
    DescriptionError
        If there is no policy of that name.
    PlacementError
        If units are left that no pilot will take.
    """
    chosen = _policy(policy) if isinstance(policy, str) else policy
    return Engine(scenario, chosen, seed=scenario.seed if seed is None else seed, trace=trace).run()


def _policy(name: str) -> Placement:
    if name not in POLICIES:
        raise DescriptionError(
            f"policy {name!r} is unknown; {did_you_mean(name, POLICIES)}", field="policy", value=name
        )
    return POLICIES[name]()


@dataclass(frozen=True, slots=True)
class Comparison:
    """What several policies made of one scenario.

    Parameters
    ----------
    results : tuple of Result
    bound : Bound
        A makespan that none could beat.
    plan : Result or None
        What a plan with perfect knowledge gives, the best that was found; None if none was made.
    """

    results: tuple[Result, ...]
    bound: Bound
    plan: Result | None

    @property
    def best_s(self) -> float | None:
        """The makespan of the plan or, if one of the policies was faster, of that; None without a plan."""
        return None if self.plan is None else min(result.makespan_s for result in (self.plan, *self.results))

    def regret(self, policy: str) -> tuple[float, float | None]:
        """How many times the bound, and the best that is known, a policy took."""
        made_s = next(result.makespan_s for result in self.results if result.policy == policy)
        return made_s / self.bound.makespan_s, None if self.best_s is None else made_s / self.best_s


def compare(
    scenario: Scenario,
    policies: Iterable[str] = tuple(POLICIES),
    *,
    seed: int | None = None,
    evaluations: int | None = None,
) -> Comparison:
    """Run a scenario under several policies, and say how good any could be.

    Parameters
    ----------
    scenario : Scenario
    policies : iterable of str
        Of :data:`POLICIES`.
    seed : int, optional
        By default the scenario's.
    evaluations : int, optional
        How many plans to try; 0: none. By default 500 for scenarios of up to 300 units, and none for larger ones.

    Returns
    -------
    Comparison
    """
    results = tuple(simulate(scenario, policy, seed=seed) for policy in dict.fromkeys(policies))
    if evaluations is None:
        evaluations = 500 if len(scenario.units) <= _PLANNED_UNITS else 0
    plan = make_plan(scenario, evaluations=evaluations, begin_with=results)[1] if evaluations else None
    return Comparison(results, lower_bound(scenario), plan)


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A scenario as it is, and changed.

    Parameters
    ----------
    base, changed : Result
    """

    base: Result
    changed: Result

    @property
    def speedup(self) -> float:
        """How many times faster the changed scenario is done."""
        return self.base.makespan_s / self.changed.makespan_s


def what_if(
    scenario: Scenario,
    *,
    add_pilots: Iterable[Pilot] = (),
    without: Iterable[str] = (),
    add_replicas: Iterable[tuple[str, str]] = (),
    links: Iterable[Link] = (),
    policy: str = "dpilot",
    seed: int | None = None,
) -> WhatIf:
    """What a change would bring: run a scenario as it is, and changed.

    Parameters
    ----------
    scenario : Scenario
    add_pilots : iterable of Pilot
    without : iterable of str
        Ids of pilots to leave out.
    add_replicas : iterable of (str, str)
        Data units and the stores that have them, too.
    links : iterable of Link
        Instead of, or beside, those there are.
    policy : str
        One of :data:`POLICIES`.
    seed : int, optional

    Returns
    -------
    WhatIf

    Raises
    ------
    DescriptionError
        If what is named is not there.
    """
    changed = change(scenario, add_pilots=add_pilots, without=without, add_replicas=add_replicas, links=links)
    return WhatIf(simulate(scenario, policy, seed=seed), simulate(changed, policy, seed=seed))


def change(
    scenario: Scenario,
    *,
    add_pilots: Iterable[Pilot] = (),
    without: Iterable[str] = (),
    add_replicas: Iterable[tuple[str, str]] = (),
    links: Iterable[Link] = (),
) -> Scenario:
    """The scenario with changes, as for :func:`what_if`."""
    gone = set(without)
    _known(gone, [pilot.id for pilot in scenario.pilots], "pilot")
    more: dict[str, list[str]] = {}
    for data, store in add_replicas:
        more.setdefault(data, []).append(store)
    _known(more, [data.id for data in scenario.data], "data unit")
    return scenario.replace(
        pilots=(*(pilot for pilot in scenario.pilots if pilot.id not in gone), *add_pilots),
        data=tuple(
            type(data)(data.id, data.nbytes, data.n_files, tuple(dict.fromkeys((*data.replicas, *more[data.id]))))
            if data.id in more
            else data
            for data in scenario.data
        ),
        links=(*scenario.links, *links),
    )


def _known(ids: Iterable[str], known: list[str], what: str) -> None:
    for id in ids:
        if id not in known:
            raise DescriptionError(
                f"{id!r} is no {what} of the scenario; {did_you_mean(id, known)}", field=what, value=id
            )
