"""How good the placement of a run was: the run replayed in the simulator, beside a bound and a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpilot.errors import PilotError
from dpilot.monitor.record import records
from dpilot.runtime.account import Account
from dpilot.simulator import Result, Scenario, compare

__all__ = ["Regret", "regret"]

#: What a run is set beside: the policy that the scheduler has, and one that does not look at data.
_POLICIES = ("dpilot", "random")


@dataclass(frozen=True, slots=True)
class Regret:
    """A run beside what the simulator makes of it.

    Parameters
    ----------
    rows : tuple of dict
        ``policy`` (``recorded`` is the run itself, ``plan`` made with perfect knowledge), ``makespan_s``, that over the
        bound and over the best that was found in the simulator (``over_bound``, ``over_best``), ``flow_s`` (mean time
        from submission to end), and the bytes of input by how far they came.
    bound_s : float
        A makespan that no placement could beat.
    why : str
        What the bound comes from.
    best_s : float
        The least makespan that was found in the simulator.
    """

    rows: tuple[dict[str, Any], ...]
    bound_s: float
    why: str
    best_s: float

    @property
    def of_run(self) -> float:
        """The run's own makespan over the best that was found."""
        return float(next(row["over_best"] for row in self.rows if row["policy"] == "recorded"))


def regret(account: Account, evaluations: int | None = None) -> Regret:
    """Replay a run in the simulator.

    Parameters
    ----------
    account : Account
    evaluations : int, optional
        How many plans to try; by default as :func:`dpilot.simulator.compare`.

    Returns
    -------
    Regret

    Raises
    ------
    PilotError
        If no unit has run, or the simulator cannot run what has.
    """
    lines = list(records(account))
    if not any(line["record"] == "unit" for line in lines):
        raise PilotError("no unit of the run has ended, so there is nothing to replay; wait() for them")
    recording = Scenario.from_records(lines)
    assert recording.result is not None  # all that is recorded has ended
    comparison = compare(recording.scenario, _POLICIES, evaluations=evaluations)
    simulated = [*comparison.results, *([comparison.plan] if comparison.plan is not None else [])]
    best_s = min(result.makespan_s for result in simulated)
    bound = comparison.bound
    return Regret(
        tuple(_row(result, bound.makespan_s, best_s) for result in (recording.result, *simulated)),
        bound.makespan_s,
        bound.reason,
        best_s,
    )


def _row(result: Result, bound_s: float, best_s: float) -> dict[str, Any]:
    nbytes: Sequence[int] = result.nbytes
    return {
        "policy": result.policy,
        "makespan_s": result.makespan_s,
        "over_bound": result.makespan_s / bound_s if bound_s else None,
        "over_best": result.makespan_s / best_s if best_s else None,
        "flow_s": result.flow_s,
        "local_bytes": nbytes[0],
        "same_datacenter_bytes": nbytes[1],
        "cross_datacenter_bytes": nbytes[2],
    }
