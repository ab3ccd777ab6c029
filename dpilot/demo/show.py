"""What the demo prints, and the directories that it makes and removes."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask

from dpilot.demo.data import AIRPORTS, prepare
from dpilot.demo.flights import ALL_SITES, Outcome, Site, UnitRun, run
from dpilot.demo.seaweed import s3_server
from dpilot.errors import PilotError
from dpilot.monitor.tables import nbytes_text, text_table
from dpilot.runtime.session import Session

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["demo"]

_PLACEMENT = {False: "by data", True: "in turn"}
_EXPLAINED = {
    False: 'Placement "by data": dpilot runs each unit where the files lie that it reads.',
    True: 'Placement "in turn" (naive): each unit is required to run at the next site in turn, whatever it reads.',
}


def demo(modes: Sequence[bool], months: Sequence[int], *, s3: bool, keep: Path | None) -> list[Outcome]:
    """Run the demo and print its story.

    Parameters
    ----------
    modes : sequence of bool
        What `naive` is in each run of the job, such as ``[False]``, or ``[False, True]`` to compare.
    months : sequence of int
        The months of 2013 to look at.
    s3 : bool
        Keep each site's data in a bucket of an S3 server started here, instead of in a directory.
    keep : Path or None
        Where to leave all files; None for a temporary directory, which is removed.

    Returns
    -------
    list of Outcome
        One for each of `modes`.
    """
    begun = time.perf_counter()
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        directory = _directory(keep, stack)
        stack.enter_context(dask.config.set(temporary_directory=str(directory / "dask")))  # else it litters
        stack.callback(Session.close_all)  # before its directory goes
        count = prepare(directory / "records", months)
        print(
            f"{count:,} flights that left New York in 2013, and the weather, recorded at three airports: "
            f"{', '.join(AIRPORTS)}."
        )
        options = stack.enter_context(s3_server(directory / "s3", list(map(_bucket, AIRPORTS)))) if s3 else None
        print(
            "All of it runs on this machine: for each site a pilot of one process, and "
            + ("a bucket of one local S3 server." if s3 else "a directory.")
        )
        print(
            "Reading at one's own site, and from another's, are both real requests to that server."
            if s3
            else "Reading a file at one's own site is a link; from another site it is a real copy."
        )
        print("dpilot is told that lines of 1 Mbit/s join the sites; nothing is really slowed down.")
        outcomes = []
        for naive in modes:
            print(f"\n{_EXPLAINED[naive]}", flush=True)
            mode = directory / ("naive" if naive else "aware")
            sites = [_site(airport, directory / "records", mode, options) for airport in AIRPORTS]
            outcome = run(sites, months, naive=naive, progress=True, on_start=_print_dashboard)
            outcomes.append(outcome)
            _print_runs(outcome)
        _print_results(outcomes[0])
        if len(modes) > 1:
            _print_comparison(modes, outcomes)
        else:
            print("\nTo measure both placements beside each other: dpilot demo --compare")
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)  # what is left is to clean up: let it
        print(f"Done in {time.perf_counter() - begun:.1f} s." + (f" Files kept in {directory}." if keep else ""))
    return outcomes


def _bucket(airport: str) -> str:
    return f"site-{airport.lower()}"


def _site(airport: str, records: Path, directory: Path, s3: Mapping[str, Any] | None) -> Site:
    """Describe a site: its data in a directory on its own machine, or in a bucket, which is on none."""
    machine = {"affinity_machine_label": f"{airport}-1"}
    home = directory / airport
    return Site(
        name=airport,
        records=records / airport,
        compute={"service_url": "fork://localhost", "working_directory": str(home / "work")} | machine,
        store={"service_url": f"file://{home / 'data'}"} | machine
        if s3 is None
        else {"service_url": f"s3://{_bucket(airport)}/{directory.name}", "storage_options": dict(s3)},
    )


def _directory(keep: Path | None, stack: ExitStack) -> Path:
    if keep is None:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dpilot-demo-")))
    keep = keep.absolute()
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise PilotError(f"--keep: {keep} is not an empty directory; name one that is empty, or does not exist yet")
    keep.mkdir(parents=True, exist_ok=True)
    return keep


def _print_dashboard(url: str | None) -> None:
    if url:
        print(f"Dashboard while it runs: {url}", flush=True)


def _print_runs(outcome: Outcome) -> None:
    rows = []
    for site in (*AIRPORTS, ALL_SITES):
        runs = [unit for unit in outcome.runs if unit.data_at == site]
        ran = [sum(unit.ran_at == airport for unit in runs) or None for airport in AIRPORTS]
        rows.append([site, *ran, *_read(runs)])
    rows.append(["together", *(sum(u.ran_at == a for u in outcome.runs) for a in AIRPORTS), *_read(outcome.runs)])
    print("\nWhere the units ran, and the bytes that they read, by the site of their data:")
    print(text_table(["data at", *(f"at {a}" for a in AIRPORTS), "from own site", "from other sites"], rows))
    print(f"Pilots and data ready after {outcome.ready_seconds:.1f} s, work done in {outcome.work_seconds:.1f} s more.")


def _read(runs: Iterable[UnitRun]) -> tuple[str, str]:
    runs = list(runs)
    return nbytes_text(sum(unit.near_bytes for unit in runs)), nbytes_text(sum(unit.far_bytes for unit in runs))


def _print_results(outcome: Outcome) -> None:
    print("\nMean delay at departure in minutes, by the hour's weather:")
    print(_frame_text(outcome.weather, "weather"))
    print("\nThe carriers, most punctual first (built: mean year of make of their planes, where known):")
    print(_frame_text(outcome.carriers, "carrier"))
    print("\nWhy the carriers' table was made where it was:")
    why = outcome.why
    for pilot, site in outcome.pilots.items():
        why = why.replace(f"to {pilot}", f"to {site}").replace(pilot, site.ljust(len(pilot)))
    print(why)


_FORMATS = {"airline": "{}", "flights": "{:,}", "planes": "{:,}", "built": "{:.0f}"}


def _frame_text(frame: pd.DataFrame, index: str) -> str:
    names = [str(name) for name in frame.columns]

    def cell(name: str, value: object) -> str | None:
        missing = value != value  # only NaN differs from itself
        return None if missing else _FORMATS.get(name, "{:.1f}").format(value)

    rows = [[label, *map(cell, names, row)] for label, *row in frame.itertuples()]
    return text_table([index, *names], rows)


def _print_comparison(modes: Sequence[bool], outcomes: Sequence[Outcome]) -> None:
    print("\nBoth placements, measured just now:")
    rows = [
        [_PLACEMENT[naive], f"{outcome.work_seconds:.1f} s", *_read(outcome.runs)]
        for naive, outcome in zip(modes, outcomes, strict=True)
    ]
    print(text_table(["placement", "work", "from own site", "from other sites"], rows))
    print(
        "The times say little: on one machine no line between sites is slow. The bytes are what would have to travel."
    )
