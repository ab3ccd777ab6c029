"""Where what units write has to go to plays a part in where they run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Scheduler

from dpilot import ComputeDataService, ComputeUnit, PilotComputeService, PilotDataService
from dpilot.runtime.scheduler import PilotPlugin
from tests.helpers import LONG_S, slow_link

pytestmark = pytest.mark.cluster

NBYTES = 2_000_000


@pytest.fixture
def scheduler() -> Iterator[str]:
    with slow_link() as address:
        yield address


def writes(n: int, **labels: str) -> list[dict[str, Any]]:
    """Units that each write 2 MB into a data unit of their own, in no time."""
    script = f"head -c {NBYTES} /dev/zero > out.bin"
    return [
        {"executable": "/bin/sh", "arguments": ["-c", script], "name": "write", "output_data": [{"out": "out.bin"}]}
        | labels
        for _ in range(n)
    ]


def where(units: list[ComputeUnit]) -> list[str]:
    """The pilots that they ran on."""
    assert [unit.wait(LONG_S) for unit in units] == ["Done"] * len(units)
    return [unit.get_details()["pilot"] for unit in units]


def test_units_that_write_run_where_it_goes_to(
    pcs: PilotComputeService, pds: PilotDataService, cds: ComputeDataService, tmp_path: Path
) -> None:
    pilots = [
        pcs.create_pilot(
            {
                "service_url": "fork://localhost",
                "working_directory": str(tmp_path / site),
                "affinity_datacenter_label": site,
                "affinity_machine_label": f"{site}-1",
            }
        )
        for site in ("eu", "us")
    ]
    eu, us = (pilot.id for pilot in pilots)
    assert [pilot.wait_running(LONG_S) for pilot in pilots] == ["Running"] * 2
    pds.create_pilot({"service_url": f"file://{tmp_path / 'store'}", "affinity_datacenter_label": "us"})
    assert where(cds.submit_compute_unit_batch(writes(2))) == [us] * 2  # though nothing is known yet
    there = {"affinity_datacenter_label": "eu", "affinity": "require"}
    assert where(cds.submit_compute_unit_batch(writes(1, **there))) == [eu]
    units = cds.submit_compute_unit_batch(writes(4))
    assert where(units) == [us] * 4
    cost_s = {row.pilot: row.output_s for row in units[0].explain().rows}
    assert cost_s[eu] > 0.08 > cost_s[us]  # it is not as slow as was said, but as far
    frame = cds.decisions_frame(all_pilots=True)
    assert set(frame[frame["unit"] == units[0].id]["output_s"]) == set(cost_s.values())


def test_links_are_learned_from_what_is_written(
    pcs: PilotComputeService, pds: PilotDataService, cds: ComputeDataService, tmp_path: Path
) -> None:
    work = {"service_url": "fork://localhost", "working_directory": str(tmp_path / "eu")}
    pilot = pcs.create_pilot({**work, "affinity_datacenter_label": "eu", "affinity_machine_label": "eu-1"})
    pds.create_pilot({"service_url": f"file://{tmp_path / 'store'}", "affinity_datacenter_label": "us"})
    assert where(cds.submit_compute_unit_batch(writes(3))) == [pilot.id] * 3

    def seen(dask_scheduler: Scheduler) -> list[tuple[Any, ...]]:
        plugin = dask_scheduler.plugins["dpilot"]
        assert isinstance(plugin, PilotPlugin)
        return [(row.source, row.target, row.n) for row in plugin.matcher.policy.links.table() if row.n]

    assert pcs.client.run_on_scheduler(seen) == [("eu", "us", 3)]
