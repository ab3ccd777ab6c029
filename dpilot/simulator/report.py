"""Results as text: tables that can be set beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dpilot.simulator.bound import Bound
from dpilot.simulator.result import WAITS, Result
from dpilot.simulator.scenario import Scenario

__all__ = ["HEADER", "describe", "pilot_rows", "rows"]

#: The columns of :func:`rows`.
HEADER = (
    "policy", "makespan s", "x bound", "x best", "flow s", "local MB", "near MB", "far MB", "busy %",
    *(f"{wait} s" for wait in WAITS), "lost",
)  # fmt: skip


def describe(scenario: Scenario) -> str:
    """One line on what a scenario has."""
    slots = sum(pilot.slots for pilot in scenario.pilots)
    return (
        f"{scenario.name}: {len(scenario.units):,} units, {slots:,} slots of {len(scenario.pilots):,} pilots, "
        f"{len(scenario.data):,} data units of {sum(data.nbytes for data in scenario.data) / 1e6:,.1f} MB"
    )


def rows(results: Iterable[Result], scenario: Scenario, bound: Bound, best_s: float | None) -> list[Sequence[object]]:
    """One row for each result, as in :data:`HEADER`.

    Parameters
    ----------
    results : iterable of Result
    scenario : Scenario
    bound : Bound
    best_s : float or None
        The least makespan that is known to be possible.
    """
    return [
        (
            result.policy,
            f"{result.makespan_s:.3f}",
            f"{result.makespan_s / bound.makespan_s:.2f}" if bound.makespan_s else None,
            f"{result.makespan_s / best_s:.2f}" if best_s else None,
            f"{result.flow_s:.3f}",
            *(f"{nbytes / 1e6:.1f}" for nbytes in (*result.nbytes[:2], result.far_nbytes)),
            f"{100 * _busy(result, scenario):.1f}",
            *(f"{wait_s:.3f}" for wait_s in result.waits_s),
            result.n_lost,
        )
        for result in results
    ]


def _busy(result: Result, scenario: Scenario) -> float:
    """The part of all slots' time in which units ran."""
    here_s = [
        pilot.slots * max(0.0, min(result.makespan_s, pilot.gone_s or result.makespan_s) - pilot.arrives_s)
        for pilot in scenario.pilots
    ]
    busy_s = sum(share * seconds for share, seconds in zip(result.utilisation, here_s, strict=True))
    return busy_s / sum(here_s) if sum(here_s) else 0.0


def pilot_rows(result: Result, scenario: Scenario) -> list[Sequence[object]]:
    """For each pilot its site, its slots, and how much of their time units ran."""
    return [
        (pilot.id, pilot.site, pilot.slots, f"{100 * share:.1f}")
        for pilot, share in zip(scenario.pilots, result.utilisation, strict=True)
    ]
