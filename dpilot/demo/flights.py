"""What delays flights out of New York? One job at three sites, to be read from top to bottom.

Each airport keeps its own records: a year of flights, month by month, and the weather of every hour. One of them also
keeps the register of planes. The job needs all of it, and says nowhere where it is to run: each unit of work names
what it reads, and dpilot runs it where that lies. Only small tables travel, at the end.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask

from dpilot import ComputeDataService, ComputeUnit, DataUnit, PilotComputeService, PilotDataService
from dpilot.demo import work
from dpilot.demo.data import REGISTRY

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ALL_SITES", "LINES", "Outcome", "Site", "UnitRun", "run"]

ALL_SITES = "all sites"

#: What dpilot is told of the lines between the sites: 1 Mbit/s. A file waits for a slot at its own site rather than
#: travel over that. (Here all sites are on one machine, and nothing is really that slow.)
LINES = {"dpilot.placement.bandwidth.other-datacenter": "125 kB"}


@dataclass(frozen=True, eq=False)
class Site:
    """A site: its name, the records that were made there, and its pilots' descriptions but for the datacenter."""

    name: str
    records: Path
    compute: dict[str, Any]
    store: dict[str, Any]


def run(
    sites: Sequence[Site],
    months: Sequence[int],
    *,
    naive: bool = False,
    progress: bool = False,
    on_start: Callable[[str | None], None] = lambda dashboard: None,
) -> Outcome:
    """Run the job.

    Parameters
    ----------
    sites : sequence of Site
    months : sequence of int
        The months of which each site has a file of flights.
    naive : bool
        Do not look at where the data lies: require each unit to run at the next site in turn.
    progress : bool
        Show progress bars on stderr.
    on_start : callable
        Gets the URL of the dashboard, or None without one.

    Returns
    -------
    Outcome
    """
    begun = time.perf_counter()
    turns = itertools.cycle(site.name for site in sites)

    def where() -> dict[str, str]:
        return {"affinity_datacenter_label": next(turns), "affinity": "require"} if naive else {}

    with (
        dask.config.set(LINES),
        PilotComputeService() as pcs,
        PilotDataService() as pds,
        ComputeDataService() as cds,
    ):
        on_start(pcs.dashboard_url)
        cds.add_pilot_compute_service(pcs)
        cds.add_pilot_data_service(pds)

        # At each site one pilot computes, and one keeps data. The label that both bear says that they are close.
        pilots = []
        for site in sites:
            label = {"affinity_datacenter_label": site.name}
            pilots.append(pcs.create_pilot(site.compute | label))
            pds.create_pilot(site.store | label)

        # A site's records become data units there.
        def keep(site: Site, *files: str) -> DataUnit:
            urls = [str(site.records / file) for file in files]
            return cds.submit_data_unit({"file_urls": urls, "affinity_datacenter_label": site.name})

        flights = {(s, month): keep(s, f"flights-{s.name}-{month:02d}.csv") for month in months for s in sites}
        weather = {site: keep(site, f"weather-{site.name}.csv") for site in sites}
        register = next(keep(site, "planes.csv", "airlines.csv") for site in sites if site.name == REGISTRY)
        cds.wait(progress=progress)
        for pilot in pilots:
            pilot.wait_running()
        ready = time.perf_counter()

        # Each month of each airport: a program reduces the flights to delays by plane, a Python function joins them
        # with the weather.
        units: list[tuple[str, ComputeUnit]] = []
        delays: dict[str, list[DataUnit]] = {site.name: [] for site in sites}
        tables = []
        for (site, month), records in flights.items():
            name = f"{site.name}-{month:02d}"
            unit = cds.submit_compute_unit(
                {
                    "executable": "awk",
                    "arguments": ["-F,", work.DELAYS, f"flights-{name}.csv"],
                    "input_data": [records],
                    "output": f"delays-{name}.csv",
                    "output_data": [{f"delays-{name}": ["delays-*.csv"]}],
                    **where(),
                }
            )
            delays[site.name].append(unit.output_data[f"delays-{name}"])
            tables.append(cds.submit(work.by_weather, records, weather[site], **where()))
            units += [(site.name, unit), (site.name, tables[-1])]

        # Each airport's year: a program adds up the months. It starts when their data units are there.
        years = []
        for airport, parts in delays.items():
            unit = cds.submit_compute_unit(
                {
                    "executable": "awk",
                    "arguments": ["-F,", work.SUM_UP, *(f"delays-{airport}-{month:02d}.csv" for month in months)],
                    "input_data": parts,
                    "output": f"year-{airport}.csv",
                    "output_data": [{f"year-{airport}": ["year-*.csv"]}],
                    **where(),
                }
            )
            years.append(unit.output_data[f"year-{airport}"])
            units.append((airport, unit))

        # All airports together: the register and the three years' files, and what the functions returned.
        carriers = cds.submit(work.by_carrier, years, register, **where())
        conditions = cds.submit(work.weather_table, *tables, **where())
        units += [(ALL_SITES, carriers), (ALL_SITES, conditions)]
        cds.wait(progress=progress)
        done = time.perf_counter()
        pilot_site = {pilot.get_id(): site.name for pilot, site in zip(pilots, sites, strict=True)}
        return Outcome(
            weather=conditions.result(),
            carriers=carriers.result(),
            why=str(carriers.explain()),
            runs=[UnitRun.of(unit, site, pilot_site) for site, unit in units],
            pilots=pilot_site,
            ready_seconds=ready - begun,
            work_seconds=done - ready,
        )


@dataclass(frozen=True)
class UnitRun:
    """Where a unit's data lay, where it ran, and the bytes it read from its own site and from others."""

    data_at: str
    ran_at: str
    near_bytes: int
    far_bytes: int

    @classmethod
    def of(cls, unit: ComputeUnit, data_at: str, pilots: dict[str, str]) -> UnitRun:
        """Look it up in the unit's details; `pilots` names the site of each pilot's id."""
        details = unit.get_details()
        nbytes = details["bytes"]
        near = nbytes["local"] + nbytes["same_datacenter"]
        return cls(data_at, pilots[details["pilot"]], near, nbytes["cross_datacenter"])


@dataclass(frozen=True)
class Outcome:
    """The two tables, and how the job went."""

    weather: pd.DataFrame
    carriers: pd.DataFrame
    why: str
    runs: list[UnitRun]
    pilots: dict[str, str]
    ready_seconds: float
    work_seconds: float
