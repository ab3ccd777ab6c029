"""MPI units over several hosts: real mpirun, real ranks, and no sshd. Hosts are network namespaces.

No host sees what the other one has at the network's `data`, nor, if it is `alone`, the other's processes.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

from dpilot import (
    ComputeDataService,
    ComputeUnit,
    ExecutableError,
    PilotCompute,
    PilotComputeService,
    PilotDataService,
    State,
)
from tests.helpers import LONG_S, eventually, lines, marked, reach
from tests.netns import Network, two_sites
from tests.services import require

pytestmark = pytest.mark.cluster

PROGRAM = r"""
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int rank, size;

static void give_up(const char *what, const char *more, int status) {
    fprintf(stderr, "%s %s\n", what, more);
    usleep(300000); /* for hydra forwards nothing more once a rank has aborted */
    MPI_Abort(MPI_COMM_WORLD, status);
}

static char *line_of(const char *path) {
    char text[256];
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file || !fgets(text, sizeof text, file)) give_up("no", path, 9);
    text[strcspn(text, "\n")] = 0;
    return strdup(text);
}

int main(int argc, char **argv) {
    int token = 0, word_size = 64;
    char word[64] = "";
    const char *what = argv[1];
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (rank == 0) {
        if (scanf("%63s", word) != 1) strcpy(word, "nothing");
        token = 1;
    }
    MPI_Bcast(word, word_size, MPI_CHAR, 0, MPI_COMM_WORLD);
    if (rank) MPI_Recv(&token, 1, MPI_INT, rank - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    token *= 2;
    if (size > 1) MPI_Send(&token, 1, MPI_INT, (rank + 1) % size, 0, MPI_COMM_WORLD);
    if (rank == 0 && size > 1) MPI_Recv(&token, 1, MPI_INT, size - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (!strcmp(what, "read"))
        printf("%d of %d at %s heard %s read %s\n", rank, size, line_of(getenv("SITE")), word, line_of("input.txt"));
    else if (!strcmp(what, "gpus"))
        printf("%s:%s\n", line_of(getenv("SITE")), getenv("CUDA_VISIBLE_DEVICES"));
    if (rank == 0) {
        FILE *file = fopen("ring.txt", "w");
        fprintf(file, "%d\n", token);
        fclose(file);
    }
    if (!strcmp(what, "abort") && rank == size - 1) give_up("no", "more", 7);
    fflush(stdout);
    MPI_Finalize();
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("mpicc", "mpirun")
    directory = tmp_path_factory.mktemp("mpi")
    (directory / "ring.c").write_text(PROGRAM)
    subprocess.run(["mpicc", "-Wall", "ring.c", "-o", "ring"], cwd=directory, check=True)
    return directory / "ring"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """The hosts ``a`` and ``b``, each with its name in a file of its own."""
    short = dask.config.set({"dpilot.unit.grace-period": "0.5 s"})
    with short, two_sites(tmp_path_factory.mktemp("hosts")) as network:
        for name, directory in network.sites.items():
            (directory / "name").write_text(name)
        network.scheduler()
        yield network


@pytest.fixture
def pcs(hosts: Network) -> Iterator[PilotComputeService]:
    """A service for pilots over the hosts."""
    with PilotComputeService(hosts.schedulers[0]) as service:
        yield service


@pytest.fixture
def pds(hosts: Network) -> Iterator[PilotDataService]:
    """A service for stores there."""
    with PilotDataService(hosts.schedulers[0]) as service:
        yield service


class Ranks:
    """Submits MPI units; ranks are told by a variable of their own.

    Parameters
    ----------
    cds : ComputeDataService
    program : Path
    network : Network
    """

    def __init__(self, cds: ComputeDataService, program: Path, network: Network) -> None:
        self.token = uuid.uuid4().hex
        self._cds, self._program, self._network = cds, program, network

    def submit(self, *arguments: str, environment: dict[str, str] | None = None, **keys: Any) -> ComputeUnit:
        """A unit of four ranks."""
        variables = {"SITE": f"{self._network.data}/name", "RANKS": self.token}
        description = {
            "executable": str(self._program),
            "arguments": list(arguments),
            "environment": {**variables, **(environment or {})},
            "number_of_processes": 4,
            "spmd_variation": "mpi",
        }
        return self._cds.submit_compute_unit({**description, **keys})

    def sleep(self, how: str = "", **keys: Any) -> tuple[ComputeUnit, Path]:
        """A unit whose ranks have begun to sleep, and the file that a later attempt finds, and does not sleep."""
        awake = self._network.directory / self.token
        script = f"[ -e {awake} ] && exit; {how} echo asleep; exec sleep 600"
        unit = self.submit("-c", script, executable="/bin/sh", **keys)
        eventually(lambda: len(self.living()) == 4, "four ranks")
        return unit, awake

    def living(self) -> list[psutil.Process]:
        """The ranks that run."""
        found = []
        for process in marked("RANKS", self.token):
            with suppress(psutil.NoSuchProcess):  # it may end while it is looked at
                if process.name() == "sleep":
                    found.append(process)
        return found


@pytest.fixture
def ranks(pcs: PilotComputeService, pds: PilotDataService, program: Path, hosts: Network) -> Iterator[Ranks]:
    """A compute data service, for MPI units."""
    with ComputeDataService(coordination_url=hosts.schedulers[0]) as cds:
        cds.add_pilot_compute_service(pcs)
        cds.add_pilot_data_service(pds)
        yield Ranks(cds, program, hosts)


def start(
    pcs: PilotComputeService, network: Network, shared: bool = False, alone: bool = False, **keys: Any
) -> PilotCompute:
    """A pilot of two slots on each host, with a working directory that they share, or one on each."""
    name = f"work-{uuid.uuid4().hex[:6]}"
    for parent in (network.directory, *network.sites.values()):
        (parent / name).mkdir()
    directory = (network.directory if shared else network.data) / name
    url = "netns://a+b/alone" if alone else "netns://a+b"
    description = {"service_url": url, "number_of_processes": 4, "threads_per_worker": 2}
    pilot = pcs.create_pilot({**description, "working_directory": str(directory), **keys})
    slots = pilot.slots
    eventually(lambda: pilot.get_free_nodes() == slots, "all workers")
    return pilot


def worker(pilot: PilotCompute, site: str) -> psutil.Process:
    """The only worker of a pilot at a host: the child of the agent there, as this process sees it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            parent = process.parent()
            command = process.cmdline()
            if f"{pilot.id}-{site}" in command and parent is not None and parent.cmdline() == command:
                found.append(process)
    (only,) = found
    return only


def head(network: Network, unit: ComputeUnit) -> str:
    """The host that has the output of a unit's ranks."""
    (found,) = (site for site in network.sites if (at(network, site, unit) / "stdout.txt").exists())
    return found


def output(network: Network, unit: ComputeUnit) -> list[str]:
    """What a unit's ranks have written so far."""
    return lines(at(network, head(network, unit), unit) / "stdout.txt")


def at(network: Network, site: str, unit: ComputeUnit) -> Path:
    """Where the tests find what a host has in the working directory of a unit."""
    directory = Path(unit.get_local_working_directory())
    return network.sites[site] / directory.relative_to(network.data)


def test_ranks_on_two_hosts_read_staged_inputs(
    pcs: PilotComputeService, pds: PilotDataService, hosts: Network, ranks: Ranks, program: Path, tmp_path: Path
) -> None:
    start(pcs, hosts)
    pds.create_pilot({"service_url": f"file://{tmp_path}/store"})
    (tmp_path / "input.txt").write_text("the input\n")
    (tmp_path / "stdin").write_text("hello\n")
    paths = [str(tmp_path / "input.txt"), str(tmp_path / "stdin")]
    staged = ranks._cds.submit_data_unit({"file_urls": paths})
    outputs = [{"result": ["ring.txt", "stdout.txt"]}]
    unit = ranks.submit("read", input="stdin", input_data=[staged], output_data=outputs)
    assert unit.wait(LONG_S) == "Done", unit.exception()
    first, other = ("a", "b") if head(hosts, unit) == "a" else ("b", "a")
    places = [first, first, other, other]
    expected = [f"{rank} of 4 at {place} heard hello read the input" for rank, place in enumerate(places)]
    result = unit.output_data["result"]
    assert result.wait(LONG_S) == "Running"
    result.export(tmp_path / "result")
    assert sorted(lines(tmp_path / "result" / "stdout.txt")) == expected
    assert lines(tmp_path / "result" / "ring.txt") == ["16"]  # one, doubled by each rank
    assert sorted(path.name for path in at(hosts, other, unit).iterdir()) == ["input.txt", "stdin"]
    assert [path for path in at(hosts, first, unit).iterdir() if path.name.startswith(".")] == []
    assert unit.pilot.get_free_nodes() == 4


def test_hosts_that_share_a_directory_share_the_sandbox(
    pcs: PilotComputeService, hosts: Network, ranks: Ranks, tmp_path: Path
) -> None:
    start(pcs, hosts, shared=True)
    (tmp_path / "input.txt").write_text("once\n")
    unit = ranks.submit("read", file_transfer=[f"{tmp_path}/input.txt > input.txt"])
    assert unit.wait(LONG_S) == "Done", unit.exception()
    directory = Path(unit.get_local_working_directory())
    found = lines(directory / "stdout.txt")
    assert len(found) == 4
    assert all(line.endswith("heard nothing read once") for line in found)
    assert {line.split()[4] for line in found} == {"a", "b"}
    assert sorted(path.name for path in directory.iterdir()) == ["input.txt", "ring.txt", "stderr.txt", "stdout.txt"]


def test_what_goes_wrong_on_the_other_host_is_told(pcs: PilotComputeService, hosts: Network, ranks: Ranks) -> None:
    pilot = start(pcs, hosts)
    error = ranks.submit("abort").exception(LONG_S)
    assert isinstance(error, ExecutableError)
    assert (error.exit_code, "no more" in error.stderr) == (7, True)
    missing = ranks.submit("read").exception(LONG_S)  # nobody has staged what it reads
    assert isinstance(missing, ExecutableError)
    assert "no input.txt" in missing.stderr
    lost = ranks.submit("read", executable="./ring", file_transfer=["/no/such/file > input.txt"]).exception(LONG_S)
    assert "/no/such/file" in str(lost)
    assert eventually(lambda: pilot.get_free_nodes() == 4, "its slots are free")


def test_gpus_are_those_of_each_worker(pcs: PilotComputeService, hosts: Network, ranks: Ranks) -> None:
    start(pcs, hosts, threads_per_worker=1, gpus_per_worker=1)
    unit = ranks.submit("gpus", gpus=4)
    assert unit.wait(LONG_S) == "Done", unit.exception()
    assert sorted(output(hosts, unit)) == ["a:0", "a:1", "b:0", "b:1"]


@pytest.mark.parametrize("how", ["", "trap '' TERM;"], ids=["heeding", "stubborn"])
def test_canceled_ranks_end_on_all_hosts(pcs: PilotComputeService, hosts: Network, ranks: Ranks, how: str) -> None:
    pilot = start(pcs, hosts, alone=True)
    unit, _ = ranks.sleep(how)
    unit.cancel()
    assert unit.wait(LONG_S) == "Canceled"
    eventually(lambda: pilot.get_free_nodes() == 4, "its slots are free")
    assert ranks.living() == []


def test_a_unit_whose_other_worker_dies_runs_again(pcs: PilotComputeService, hosts: Network, ranks: Ranks) -> None:
    pilot = start(pcs, hosts, alone=True)
    unit, awake = ranks.sleep()
    worker(pilot, "b" if head(hosts, unit) == "a" else "a").kill()
    reach(unit, State.Pending, 2)
    eventually(lambda: ranks.living() == [], "its ranks have ended")
    assert "4 slots are needed, it has 2" in ranks._cds.why_waiting()[unit.id]
    assert "4 slots are needed, it has 2" in unit.explain().reason
    awake.touch()
    second = start(pcs, hosts)
    assert unit.wait(LONG_S) == "Done", unit.exception()
    assert unit.pilot.id == second.id


def test_a_unit_whose_head_dies_runs_again(pcs: PilotComputeService, hosts: Network, ranks: Ranks) -> None:
    pilot = start(pcs, hosts, alone=True)
    unit, awake = ranks.sleep()
    awake.touch()
    second = start(pcs, hosts)
    worker(pilot, head(hosts, unit)).kill()
    assert unit.wait(LONG_S) == "Done", unit.exception()
    assert unit.pilot.id == second.id
    eventually(lambda: ranks.living() == [], "its ranks have ended")
    eventually(lambda: pilot.get_free_nodes() == 2, "the other worker is free")


def test_a_pilot_that_is_canceled_ends_its_ranks(pcs: PilotComputeService, hosts: Network, ranks: Ranks) -> None:
    pilot = start(pcs, hosts, alone=True)
    unit, awake = ranks.sleep()
    pilot.cancel()
    eventually(lambda: ranks.living() == [], "its ranks have ended")
    assert unit.state == "Pending"
    awake.touch()
    second = start(pcs, hosts)
    assert unit.wait(LONG_S) == "Done", unit.exception()
    assert unit.pilot.id == second.id


def test_ranks_that_run_too_long_are_ended(pcs: PilotComputeService, hosts: Network, ranks: Ranks) -> None:
    pilot = start(pcs, hosts, alone=True)
    unit, _ = ranks.sleep(walltime=0.05)
    assert "was ended after its walltime of 3 s" in str(unit.exception(LONG_S))
    eventually(lambda: pilot.get_free_nodes() == 4, "its slots are free")
    assert ranks.living() == []


def test_a_unit_that_costs_too_many_workers_fails(hosts: Network, program: Path) -> None:
    address = hosts.scheduler(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
    with PilotComputeService(address) as pcs, ComputeDataService(coordination_url=address) as cds:
        cds.add_pilot_compute_service(pcs)
        ranks = Ranks(cds, program, hosts)
        pilot = start(pcs, hosts, alone=True)
        unit, _ = ranks.sleep()
        worker(pilot, "b" if head(hosts, unit) == "a" else "a").kill()
        assert "has lost a worker of its gang once too often" in str(unit.exception(LONG_S))
        eventually(lambda: pilot.get_free_nodes() == 2, "its slots are free")
        assert ranks.living() == []
