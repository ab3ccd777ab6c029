"""What ``dpilot simulate`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from dpilot.errors import DescriptionError
from dpilot.monitor.tables import text_table
from dpilot.simulator.bound import lower_bound
from dpilot.simulator.changes import changed
from dpilot.simulator.recording import Recording
from dpilot.simulator.report import HEADER, describe, pilot_rows, rows
from dpilot.simulator.result import Result, Trace
from dpilot.simulator.scenario import Scenario
from dpilot.simulator.simulation import POLICIES, compare, simulate
from dpilot.simulator.workloads import WORKLOADS

__all__ = ["run"]


def run(
    name: str,
    policies: Sequence[str],
    changes: Sequence[str],
    *,
    seed: int | None = None,
    plans: int | None = None,
    trace: Path | None = None,
) -> None:
    """Simulate, and print tables.

    Parameters
    ----------
    name : str
        A file or a workload.
    policies, changes : sequence of str
        None: all policies; no changes.
    seed, plans : int, optional
        As for :func:`~dpilot.simulator.compare`.
    trace : Path, optional
        Where to write what happened to each unit, under the last policy that was run.

    Raises
    ------
    PilotError
        If anything of it is wrong.
    """
    if trace is not None and trace.suffix not in (".csv", ".jsonl"):
        raise DescriptionError(
            f"--trace {str(trace)!r} is of no known kind; write .csv or .jsonl", field="trace", value=trace
        )
    recording = _read(name)
    scenario = recording.scenario
    click.echo(describe(scenario))
    if changes:
        traced = _show_change(scenario, changes, policies, seed)
    else:
        traced = _show_policies(recording, policies or tuple(POLICIES), seed, plans)
    if trace is not None and traced is not None:
        (traced.to_csv if trace.suffix == ".csv" else traced.to_json)(trace)


def _read(name: str) -> Recording:
    if name in WORKLOADS and not Path(name).exists():
        return Recording(WORKLOADS[name](), None)
    if Path(name).suffix == ".jsonl":
        return Scenario.from_records(name)
    if not Path(name).exists():
        raise DescriptionError(
            f"{name!r} is neither a file nor a workload; known are {', '.join(WORKLOADS)}", field="scenario", value=name
        )
    return Recording(Scenario.from_file(name), None)


def _show_policies(recording: Recording, policies: Sequence[str], seed: int | None, plans: int | None) -> Trace | None:
    scenario = recording.scenario
    comparison = compare(scenario, policies, seed=seed, evaluations=plans)
    results: list[Result] = [*([recording.result] if recording.result else []), *comparison.results]
    results += [comparison.plan] if comparison.plan is not None else []
    click.echo(text_table(HEADER, rows(results, scenario, comparison.bound, comparison.best_s)))
    click.echo(f"  no policy can take less than {comparison.bound.makespan_s:.3f} s ({comparison.bound.reason})")
    return comparison.results[-1].trace


def _show_change(scenario: Scenario, changes: Sequence[str], policies: Sequence[str], seed: int | None) -> Trace | None:
    after = scenario
    for text in changes:
        after = changed(after, text)
    trace = None
    for policy in policies or ("dpilot",):
        results = [simulate(it, policy, seed=seed) for it in (scenario, after)]
        table = [
            (what, *row)
            for what, it, result in zip(("as it is", "changed"), (scenario, after), results, strict=True)
            for row in rows([result], it, lower_bound(it), None)
        ]
        click.echo(text_table(("", *HEADER), table))
        click.echo(f"  {results[0].makespan_s / results[1].makespan_s:.2f} times as fast with: {'; '.join(changes)}")
        click.echo(text_table(("pilot", "site", "slots", "busy %"), pilot_rows(results[1], after)[:20]))
        trace = results[1].trace
    return trace
