"""What units of one machine need from elsewhere crosses once, and then counts as being there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from distributed import Scheduler

from dpilot import ComputeDataService, ComputeUnit, DataUnit, PilotComputeService, PilotDataService, StagedData
from tests.services import S3

pytestmark = pytest.mark.cluster

NBYTES = 1_000_000
EU = {"affinity_datacenter_label": "eu", "affinity_machine_label": "eu-1"}
BESIDE = {"affinity_datacenter_label": "eu", "affinity_machine_label": "eu-2"}
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


def bundled(pcs: PilotComputeService, units: list[ComputeUnit]) -> list[bool]:
    """Which units went to their workers in bundles."""

    def look(ids: list[str], dask_scheduler: Scheduler) -> list[bool]:
        records = dask_scheduler.plugins["dpilot"].records.units
        return [records[id].bundled for id in ids]

    found: list[bool] = pcs.client.run_on_scheduler(look, [unit.id for unit in units])
    return found


@pytest.mark.s3
def test_tiny_units_that_read_what_is_on_their_machine_go_in_bundles(
    pcs: PilotComputeService, pds: PilotDataService, cds: ComputeDataService, s3: S3, tmp_path: Path
) -> None:
    (tmp_path / "big").write_bytes(b"x" * NBYTES)
    work = tmp_path / "work"
    pcs.create_pilot(
        {"service_url": "fork://localhost", "number_of_processes": 1, "working_directory": str(work), **EU}
    )
    here, shared, bucket = (
        pds.create_pilot(store).submit_data_unit({"file_urls": [str(tmp_path / "big")]})
        for store in (
            {"service_url": f"file://{tmp_path / 'here'}", **EU},
            {"service_url": f"file://{tmp_path / 'shared'}", **BESIDE},  # which the worker sees
            {"service_url": f"s3://{s3.place()}/bucket", "storage_options": s3.storage_options, **BESIDE},
        )
    )
    assert {data.wait(30) for data in (here, shared, bucket)} == {"Running"}
    for _ in range(10):  # so that it is known how long one takes, and not the first one alone
        assert cds.submit(read, here).result(30) == (NBYTES, True)

    def run(data: DataUnit, n: int) -> list[ComputeUnit]:
        made = cds.submit_compute_unit_batch({"executable": read, "args": (data,)} for _ in range(n))
        assert [unit.result(30) for unit in made] == [(NBYTES, True)] * n
        for unit in made:
            assert [state for state, _ in unit.history] == ["New", "Pending", "Staging", "Running", "Done"]
        return made

    def local(units: list[ComputeUnit]) -> set[int]:
        return {unit.get_details()["bytes"]["local"] for unit in units}

    for data in (here, shared):
        units = run(data, 20)
        assert all(bundled(pcs, units))
        assert local(units) == {NBYTES}
    first = run(bucket, 1)
    assert (bundled(pcs, first), local(first)) == ([False], {0}), "others would wait for what has to be brought"
    later = run(bucket, 20)
    assert all(bundled(pcs, later))
    assert local(later) == {NBYTES}
    # Should it be gone without anybody's knowing, whoever needs it brings it again.
    (entry,) = work.glob(f".dpilot-cache/*/{bucket.id}@*@{NBYTES}")
    shutil.rmtree(entry)
    again = run(bucket, 20)
    assert all(bundled(pcs, again))
    assert sum(unit.get_details()["bytes"]["local"] for unit in again) == 19 * NBYTES
