"""A unit of several slots that is an MPI program: real mpirun, real ranks."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

import dask
import pytest

from dpilot import (
    ComputeDataService,
    ComputeUnit,
    DescriptionError,
    ExecutableError,
    PilotComputeService,
    PlacementError,
    State,
)
from tests.helpers import LONG_S, eventually, lines, marked, reach, start
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


class Shell:
    """Submits units whose ranks are shells that run one script.

    Parameters
    ----------
    cds : ComputeDataService
    directory : Path
        Where the scripts are put.
    """

    def __init__(self, cds: ComputeDataService, directory: Path) -> None:
        self._cds, self._directory = cds, directory

    def submit(self, script: str, ranks: int, **keys: Any) -> ComputeUnit:
        """A unit of so many ranks."""
        path = self._directory / uuid.uuid4().hex
        path.write_text(script)
        description = {"executable": "/bin/sh", "arguments": [str(path)], "spmd_variation": "mpi"}
        return self._cds.submit_compute_unit({**description, "number_of_processes": ranks, **keys})


@pytest.fixture
def shell(cds: ComputeDataService, tmp_path: Path) -> Shell:
    require("mpirun")
    return Shell(cds, tmp_path)


def output(unit: ComputeUnit) -> list[str]:
    """What a unit's ranks have written."""
    assert unit.wait(LONG_S) == "Done", unit.exception()
    return lines(Path(unit.get_local_working_directory()) / "stdout.txt")


def test_a_machine_file_says_where_the_ranks_are(pcs: PilotComputeService, shell: Shell, tmp_path: Path) -> None:
    start(pcs, tmp_path / "one", 1)
    unit = shell.submit("cat .dpilot-mpi-*/machines; echo $PMI_RANK of $PMI_SIZE", 1)
    assert output(unit) == ["127.0.0.1:1", "0 of 1"]
    start(pcs, tmp_path / "three", 3, threads_per_worker=2)
    unit = shell.submit("cat .dpilot-mpi-*/machines", 3)
    assert output(unit) == ["127.0.0.1:3"] * 3
    assert list(Path(unit.get_local_working_directory()).glob(".*")) == []


def test_more_ranks_than_any_pilot_has_slots_are_refused(
    pcs: PilotComputeService, cds: ComputeDataService, shell: Shell, tmp_path: Path
) -> None:
    first, second = start(pcs, tmp_path / "one", 1), start(pcs, tmp_path / "two", 2)
    with pytest.raises(PlacementError) as refused:
        shell.submit("exit 0", 3)
    assert str(refused.value) == (
        f"no pilot can run 'sh', which asks for number_of_processes 3 ({first.id}: 3 slots are needed, it has 1; "
        f"{second.id}: 3 slots are needed, it has 2); ask for less, or create a pilot that can run it first"
    )
    with pytest.raises(DescriptionError, match="spmd_variation 'mpi' is for programs"):
        cds.submit_compute_unit({"executable": len, "args": ["abc"], "spmd_variation": "mpi"})


def test_a_failed_gang_is_tried_again(pcs: PilotComputeService, shell: Shell, tmp_path: Path) -> None:
    start(pcs, tmp_path / "work", 2)
    flag = tmp_path / "flag"
    script = f'[ "$PMI_RANK" = 1 ] || [ -e {flag} ] || {{ touch {flag}; exit 3; }}; echo $PMI_RANK'
    assert sorted(output(shell.submit(script, 2, retries=1))) == ["0", "1"]


def test_what_mpirun_cannot_do_is_said(pcs: PilotComputeService, shell: Shell, tmp_path: Path) -> None:
    start(pcs, tmp_path / "work", 2)
    no_mpirun = shell.submit("exit 0", 2, environment={"PATH": "/nowhere"})
    assert str(no_mpirun.exception(LONG_S)).startswith("mpirun was not found on the PATH of the pilot; install MPICH")
    colon = shell.submit("exit 0", 2, arguments=["-c", ":", ":"])
    assert 'an argument that is just ":"' in str(colon.exception(LONG_S))
    other = tmp_path / "bin" / "mpirun"
    other.parent.mkdir()
    other.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "mpirun (Other MPI) 1.0" || printf "%s\\n" "$*"\n')
    other.chmod(0o755)
    unit = shell.submit("", 2, arguments=["script"], environment={"PATH": f"{other.parent}:{os.environ['PATH']}"})
    assert output(unit) == ["-n 2 /bin/sh script"]


def test_two_gangs_that_each_need_all_slots(
    pcs: PilotComputeService, cds: ComputeDataService, shell: Shell, tmp_path: Path
) -> None:
    with dask.config.set({"dpilot.unit.grace-period": "0.5 s"}):
        pilot = start(pcs, tmp_path / "work", 3, threads_per_worker=2)
    token = uuid.uuid4().hex
    environment = {"RANKS": token}
    # Ranks that do not heed SIGTERM at once, with children.
    first = shell.submit("trap '' TERM; sleep 600 & sleep 600", 3, environment=environment)
    reach(first, State.Running)
    eventually(lambda: sum(process.name() == "sleep" for process in marked("RANKS", token)) == 6, "all ranks sleep")
    second = shell.submit("echo $PMI_RANK", 3)
    small = [cds.submit(int, str(number)) for number in range(6)]
    waiting = cds.why_waiting()
    assert waiting[second.id] == second.explain().reason == f"waits for a slot of {pilot.id}"
    assert pilot.get_free_nodes() == 0
    first.cancel()
    assert sorted(output(second)) == ["0", "1", "2"]
    assert marked("RANKS", token) == []  # its slots were not given away before
    assert [unit.result(LONG_S) for unit in small] == list(range(6))
    assert pilot.get_free_nodes() == 3
