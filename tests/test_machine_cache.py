"""What units of one machine need from elsewhere crosses once, and then counts as being there."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpilot import ComputeDataService, PilotComputeService, PilotDataService, StagedData

pytestmark = pytest.mark.cluster

NBYTES = 1_000_000
EU = {"affinity_datacenter_label": "eu", "affinity_machine_label": "eu-1"}
US = {"affinity_datacenter_label": "us", "affinity_machine_label": "us-1"}


def read(data: StagedData) -> tuple[int, bool]:
    with data.open("big") as file:
        return len(file.read()), Path(data.files["big"]).resolve().stat().st_mode & 0o222 == 0


def test_many_units_one_transfer(
    pcs: PilotComputeService, pds: PilotDataService, cds: ComputeDataService, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(b"x" * NBYTES)
    here = pcs.create_pilot(
        {
            "service_url": "fork://localhost",
            "number_of_processes": 3,
            "working_directory": str(tmp_path / "work"),
            **EU,
        }
    )
    store = pds.create_pilot({"service_url": f"file://{tmp_path / 'us'}", **US})
    data = store.submit_data_unit({"file_urls": [str(tmp_path / "big")]})
    assert data.wait(30) == "Running"
    units = [cds.submit(read, data) for _ in range(12)]
    assert [unit.result(30) for unit in units] == [(NBYTES, True)] * 12
    moved = [unit.get_details()["bytes"] for unit in units]
    assert sum(nbytes["cross_datacenter"] for nbytes in moved) == NBYTES
    assert sum(nbytes["local"] for nbytes in moved) == 11 * NBYTES

    # A unit that comes later is told that the data is here, and would not go to where it came from.
    there = pcs.create_pilot(
        {"service_url": "fork://localhost", "working_directory": str(tmp_path / "there"), "number_of_processes": 1}
    )
    assert there.wait_running(30) == "Running"
    late = cds.submit(read, data)
    assert late.result(30) == (NBYTES, True)
    (row,) = [row for row in late.explain().rows if row.pilot == here.id]
    assert row.nbytes == (NBYTES, 0, 0)
    assert late.pilot is here
