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

from dpilot import ComputeDataService, ComputeUnit, PilotComputeService, PilotDataService
from dpilot.demo import work
from dpilot.demo.data import REGISTRY

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ALL_SITES", "Outcome", "Site", "UnitRun", "run"]

ALL_SITES = "all sites"


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
    on_start: Callable[[str], None] = lambda dashboard: None,
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
        Gets the URL of the dashboard, once it is served.

    Returns
    -------
    Outcome
    """
    begun = time.perf_counter()
    turns = itertools.cycle(site.name for site in sites)

    def where() -> dict[str, str]:
        return {"affinity_datacenter_label": next(turns), "affinity": "require"} if naive else {}

    with PilotComputeService() as pcs, PilotDataService() as pds, ComputeDataService() as cds:
        on_start(pcs.dashboard_url)
        cds.add_pilot_compute_service(pcs)
        cds.add_pilot_data_service(pds)

        # At each site one pilot computes, and one keeps data. The label that both bear says that they are close.
        pilots = {}
        for site in sites:
            label = {"affinity_datacenter_label": site.name}
            pilots[pcs.create_pilot(site.compute | label).get_id()] = site.name
            pds.create_pilot(site.store | label)

        # A site's records become data units there.
        def keep(site: Site, *files: str) -> Any:
            urls = [str(site.records / file) for file in files]
            return cds.submit_data_unit({"file_urls": urls, "affinity_datacenter_label": site.name})

        flights = {(s, month): keep(s, f"flights-{s.name}-{month:02d}.csv") for s in sites for month in months}
        weather = {site: keep(site, f"weather-{site.name}.csv") for site in sites}
        register = next(keep(site, "planes.csv", "airlines.csv") for site in sites if site.name == REGISTRY)
        cds.wait(progress=progress)
        ready = time.perf_counter()

        # Each month of each airport: an executable reduces the flights to delays by plane, a Python function joins
        # them with the weather. An executable adds up the airport's year: it starts when the months are there.
        units: list[tuple[str, ComputeUnit]] = []
        tables, years = [], []
        for site in sites:
            delays = []
            for month in months:
                name = f"{site.name}-{month:02d}"
                unit = cds.submit_compute_unit(
                    {
                        "executable": "awk",
                        "arguments": ["-F,", work.DELAYS, f"flights-{name}.csv"],
                        "input_data": [flights[site, month]],
                        "output": f"delays-{name}.csv",
                        "output_data": [{f"delays-{name}": ["delays-*.csv"]}],
                        **where(),
                    }
                )
                delays.append(unit.output_data[f"delays-{name}"])
                tables.append(cds.submit(work.by_weather, flights[site, month], weather[site], **where()))
                units += [(site.name, unit), (site.name, tables[-1])]
            unit = cds.submit_compute_unit(
                {
                    "executable": "awk",
                    "arguments": ["-F,", work.SUM_UP, *(f"delays-{site.name}-{month:02d}.csv" for month in months)],
                    "input_data": delays,
                    "output": f"year-{site.name}.csv",
                    "output_data": [{f"year-{site.name}": ["year-*.csv"]}],
                    **where(),
                }
            )
            years.append(unit.output_data[f"year-{site.name}"])
            units.append((site.name, unit))

        # All airports together: the register and the three years' files, and what the functions returned.
        carriers = cds.submit(work.by_carrier, years, register, **where())
        conditions = cds.submit(work.weather_table, *tables, **where())
        units += [(ALL_SITES, carriers), (ALL_SITES, conditions)]
        cds.wait(progress=progress)
        done = time.perf_counter()
        return Outcome(
            weather=conditions.result(),
            carriers=carriers.result(),
            why=str(carriers.explain()),
            runs=[UnitRun.of(unit, site, pilots) for site, unit in units],
            pilots=pilots,
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
