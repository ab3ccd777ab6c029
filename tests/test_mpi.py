"""A unit of several slots that is an MPI program: real mpirun, real ranks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dpilot import ComputeDataService, ExecutableError, PilotComputeService
from tests.services import require

pytestmark = pytest.mark.cluster

PROGRAM = r"""
#include <mpi.h>
#include <stdio.h>
int main(int argc, char **argv) {
    int rank, size, sum;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    printf("rank %d of %d, sum %d, argument %s\n", rank, size, sum, argv[1]);
    MPI_Finalize();
    return argc > 2;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("mpicc", "mpirun")
    directory = tmp_path_factory.mktemp("mpi")
    (directory / "hello.c").write_text(PROGRAM)
    subprocess.run(["mpicc", "hello.c", "-o", "hello"], cwd=directory, check=True)
    return directory / "hello"


def test_ranks_are_the_slots(pcs: PilotComputeService, cds: ComputeDataService, program: Path, tmp_path: Path) -> None:
    pilot = pcs.create_pilot(
        {"service_url": "fork://localhost", "number_of_processes": 3, "working_directory": str(tmp_path)}
    )
    description = {"executable": str(program), "number_of_processes": 3, "spmd_variation": "mpi"}
    unit = cds.submit_compute_unit({**description, "arguments": ["$NAME"], "environment": {"NAME": "a b"}})
    assert unit.wait(60) == "Done", unit.exception()
    lines = (Path(unit.get_local_working_directory()) / "stdout.txt").read_text().splitlines()
    assert sorted(lines) == [f"rank {rank} of 3, sum 3, argument a b" for rank in range(3)]
    failing = cds.submit_compute_unit({**description, "arguments": ["x", "y"]})
    error = failing.exception(60)
    assert isinstance(error, ExecutableError)
    assert error.exit_code != 0
    assert pilot.get_free_nodes() == 3
