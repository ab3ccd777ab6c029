"""What one machine has brought, others get from its cache: a data unit spreads peer to peer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dpilot import ComputeDataService, PilotCompute, PilotComputeService, PilotDataService, StagedData
from tests.helpers import slow_link

pytestmark = pytest.mark.cluster

NBYTES = 1_000_000
FAR = {"affinity_datacenter_label": "us", "affinity_machine_label": "us-1"}


@pytest.fixture
def scheduler() -> Iterator[str]:
    with slow_link() as address:
        yield address


def read(data: StagedData) -> int:
    with data.open("big") as file:
        return len(file.read())


def at(machine: str) -> dict[str, str]:
    return {"affinity_datacenter_label": "eu", "affinity_machine_label": machine}


def start(pcs: PilotComputeService, tmp_path: Path, machine: str) -> PilotCompute:
    directory = str(tmp_path / machine)
    return pcs.create_pilot({"service_url": "fork://localhost", "working_directory": directory, **at(machine)})


def on(cds: ComputeDataService, machine: str, data: object) -> dict[str, int]:
    """Have a unit read the data on a machine. Returns the bytes by how far they came."""
    unit = cds.submit_compute_unit({"executable": read, "args": (data,), "affinity": "require", **at(machine)})
    assert unit.result(30) == NBYTES
    return {where: nbytes for where, nbytes in unit.get_details()["bytes"].items() if nbytes}


@pytest.fixture
def data(pds: PilotDataService, tmp_path: Path) -> object:
    (tmp_path / "big").write_bytes(b"x" * NBYTES)
    store = pds.create_pilot({"service_url": f"file://{tmp_path / 'us'}", **FAR})
    made = store.submit_data_unit({"file_urls": [str(tmp_path / "big")]})
    assert made.wait(30) == "Running"
    return made


def test_a_machine_gets_from_its_neighbour_what_that_has_brought(
    pcs: PilotComputeService, cds: ComputeDataService, data: object, tmp_path: Path
) -> None:
    pilots = [start(pcs, tmp_path, machine) for machine in ("eu-1", "eu-2", "eu-3")]
    assert [pilot.wait_running(30) for pilot in pilots] == ["Running"] * 3
    assert on(cds, "eu-1", data) == {"cross_datacenter": NBYTES}
    assert on(cds, "eu-2", data) == {"same_datacenter": NBYTES}
    assert on(cds, "eu-3", data) == {"same_datacenter": NBYTES}
    assert on(cds, "eu-3", data) == {"local": NBYTES}
    links = cds.report().rows("links")
    assert sum(row["bytes"] for row in links) == 3 * NBYTES


def test_a_pilot_without_a_machine_label_has_a_cache_that_is_known(
    pcs: PilotComputeService, cds: ComputeDataService, data: object, tmp_path: Path
) -> None:
    start(pcs, tmp_path, "eu-1")
    work = {"service_url": "fork://localhost", "working_directory": str(tmp_path / "eu")}
    pilot = pcs.create_pilot({**work, "affinity_datacenter_label": "eu"})
    for counted_on in ((0, 0, NBYTES), (NBYTES, 0, 0)):
        unit = pilot.submit_compute_unit({"executable": read, "args": (data,)})
        assert unit.result(30) == NBYTES
        assert tuple(unit.get_details()["bytes"].values()) == counted_on
        assert unit.explain().rows[0].nbytes == counted_on
    assert on(cds, "eu-1", data) == {"same_datacenter": NBYTES}


def test_what_a_cache_has_no_more_comes_from_the_store(
    pcs: PilotComputeService, cds: ComputeDataService, data: object, tmp_path: Path
) -> None:
    pilots = [start(pcs, tmp_path, machine) for machine in ("eu-1", "eu-2")]
    assert [pilot.wait_running(30) for pilot in pilots] == ["Running"] * 2
    assert on(cds, "eu-1", data) == {"cross_datacenter": NBYTES}
    (entry,) = (tmp_path / "eu-1" / ".dpilot-cache").glob("*/du-*@*[0-9]")
    entry.rename(entry.with_name("gone"))
    assert on(cds, "eu-2", data) == {"cross_datacenter": NBYTES}


def test_damage_in_a_cache_is_found_and_thrown_out(
    pcs: PilotComputeService, cds: ComputeDataService, data: object, tmp_path: Path
) -> None:
    pilots = [start(pcs, tmp_path, machine) for machine in ("eu-1", "eu-2")]
    assert [pilot.wait_running(30) for pilot in pilots] == ["Running"] * 2
    assert on(cds, "eu-1", data) == {"cross_datacenter": NBYTES}
    (file,) = (tmp_path / "eu-1" / ".dpilot-cache").glob("*/du-*/big")
    file.chmod(0o644)
    file.write_bytes(b"y" * NBYTES)
    assert on(cds, "eu-2", data) == {"cross_datacenter": NBYTES}
    assert on(cds, "eu-1", data) != {"local": NBYTES}  # it was brought anew


def test_a_file_that_is_cut_short_in_a_cache_is_brought_anew(
    pcs: PilotComputeService, cds: ComputeDataService, data: object, tmp_path: Path
) -> None:
    assert start(pcs, tmp_path, "eu-1").wait_running(30) == "Running"
    assert on(cds, "eu-1", data) == {"cross_datacenter": NBYTES}
    (file,) = (tmp_path / "eu-1" / ".dpilot-cache").glob("*/du-*/big")
    file.chmod(0o644)
    file.write_bytes(b"x")
    assert on(cds, "eu-1", data) == {"cross_datacenter": NBYTES}
    assert on(cds, "eu-1", data) == {"local": NBYTES}


def test_a_machine_whose_pilot_is_gone_serves_nothing(
    pcs: PilotComputeService, cds: ComputeDataService, data: object, tmp_path: Path
) -> None:
    first, second = (start(pcs, tmp_path, machine) for machine in ("eu-1", "eu-2"))
    assert [pilot.wait_running(30) for pilot in (first, second)] == ["Running"] * 2
    assert on(cds, "eu-1", data) == {"cross_datacenter": NBYTES}
    first.cancel()
    assert first.wait(30) == "Canceled"
    assert on(cds, "eu-2", data) == {"cross_datacenter": NBYTES}
