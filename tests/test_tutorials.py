"""BigJob's tutorials, written anew: what its users did with the Pilot API works here."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import fsspec
import pytest

from dpilot import (
    Callback,
    ComputeDataService,
    ComputeUnit,
    DataUnit,
    PilotCompute,
    PilotComputeService,
    PilotData,
    PilotDataService,
    State,
)
from dpilot.runtime.session import Session
from tests.services import S3

pytestmark = pytest.mark.cluster

#: More than anything here takes, so that only a failure waits for it.
LONG_S = 30.0


@pytest.fixture(scope="module")
def pcs() -> Iterator[PilotComputeService]:
    with PilotComputeService() as service:
        yield service


@pytest.fixture(scope="module")
def pilot(pcs: PilotComputeService, tmp_path_factory: pytest.TempPathFactory) -> PilotCompute:
    directory = tmp_path_factory.mktemp("work")
    return pcs.create_pilot(
        {"service_url": "fork://localhost", "number_of_processes": 2, "working_directory": str(directory)}
    )


NewStore = Callable[..., PilotData]


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def new_store(request: pytest.FixtureRequest, pds: PilotDataService, tmp_path: Path) -> NewStore:
    """Makes stores on disk, or in buckets; labels may be given."""
    s3: S3 | None = request.getfixturevalue("s3") if request.param == "s3" else None

    def make(**labels: Any) -> PilotData:
        if s3 is None:
            place: dict[str, Any] = {"service_url": f"file://{tmp_path / f'store-{len(pds.list_pilots())}'}"}
        else:
            place = {"service_url": f"s3://{s3.bucket()}/data", "storage_options": s3.storage_options}
        return pds.create_pilot({**place, **labels})

    return make


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """Two files in the directory ``data``, and what is in them."""
    contents = {"one.txt": b"one\n", "two.bin": bytes(range(256)) * 100}
    (tmp_path / "data").mkdir()
    for name, content in contents.items():
        (tmp_path / "data" / name).write_bytes(content)
    return contents


def read(directory: str | Path) -> dict[str, bytes]:
    """All files of a directory."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in Path(directory).rglob("*") if p.is_file()}


def output(unit: ComputeUnit, name: str = "stdout.txt") -> str:
    return Path(unit.get_local_working_directory(), name).read_text()


def run_python(script: str, *arguments: str, cwd: Path) -> str:
    """Run a script in a second process; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", dedent(script), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# ---------------------------------------------------------------- the seed

#: The example of the Pilot API's documentation, but for its import line.
SEED = """
pilot_compute_service = PilotComputeService()
# create pilot job service and initiate a pilot job
pilot_compute_description = {
    "service_url": 'fork://localhost',
    "number_of_processes": 1,
    "working_directory": os.path.join(os.getcwd(),"work"),
    'affinity_datacenter_label': "eu-de-south",
    'affinity_machine_label': "mymachine"
}
pilotjob = pilot_compute_service.create_pilot(pilot_compute_description=pilot_compute_description)
compute_data_service = ComputeDataService()
compute_data_service.add_pilot_compute_service(pilot_compute_service)
# start work unit
compute_unit_description = {
    "executable": "/bin/date",
    "arguments": [""],
    "number_of_processes": 1,
    "output": "stdout.txt",
    "error": "stderr.txt",
    "affinity_datacenter_label": "eu-de-south",
    "affinity_machine_label": "mymachine"
}
compute_unit = compute_data_service.submit_compute_unit(compute_unit_description)
compute_data_service.wait()
compute_data_service.cancel()
"""


def test_the_seed_example_runs_verbatim(tmp_path: Path) -> None:
    before = "import os\nfrom dpilot import PilotComputeService, ComputeDataService, State\n"
    after = (
        "assert compute_unit.get_state() == 'Done'\n"
        "assert compute_unit.get_state() is State.Done\n"
        "print(compute_unit.get_local_working_directory())\n"
    )
    sandbox = Path(run_python(before + SEED + after, cwd=tmp_path).strip())
    assert sandbox.parent == tmp_path / "work"
    year = subprocess.run(["/bin/date", "+%Y"], capture_output=True, text=True, check=True).stdout.strip()
    date = (sandbox / "stdout.txt").read_text()
    assert year in date
    assert re.search(r"\d\d:\d\d:\d\d", date)
    assert (sandbox / "stderr.txt").read_text() == ""


# ---------------------------------------------------------------- compute


def test_simple_ensemble(cds: ComputeDataService, pilot: PilotCompute) -> None:
    units = [
        cds.submit_compute_unit(
            {
                "executable": "/bin/echo",
                "arguments": ["Hello from task $TASK_NO of ${TASKS}"],
                "environment": {"TASK_NO": number, "TASKS": 8},
                "number_of_processes": 1,
                "output": "ensemble-stdout.txt",
                "error": "ensemble-stderr.txt",
            }
        )
        for number in range(8)
    ]
    cds.wait(LONG_S)
    assert [unit.get_state() for unit in units] == ["Done"] * 8
    assert [output(u, "ensemble-stdout.txt") for u in units] == [f"Hello from task {n} of 8\n" for n in range(8)]
    assert len({unit.get_local_working_directory() for unit in units}) == 8


def test_chained_ensemble_where_each_b_starts_when_its_a_is_done(cds: ComputeDataService, pilot: PilotCompute) -> None:
    followers: dict[str, ComputeUnit] = {}
    complete = threading.Event()

    def follow(unit: ComputeUnit, member: str, value: State) -> None:
        if value != State.Done:
            return
        source = Path(unit.get_local_working_directory(), "stdout.txt")
        followers[unit.id] = cds.submit_compute_unit(
            {"executable": "/bin/sed", "arguments": ["s/A/B after A/", source]}
        )
        if len(followers) == 4:
            complete.set()

    first = cds.submit_compute_unit_batch(
        {"executable": "/bin/sh", "arguments": ["-c", f"sleep 0.2; echo A {number}"]} for number in range(4)
    )
    for unit in first:
        unit.set_callback("state", follow)
    assert complete.wait(LONG_S)
    cds.wait(LONG_S)
    assert [output(followers[unit.id]) for unit in first] == [f"B after A {number}\n" for number in range(4)]


def test_chained_ensemble_where_the_data_orders_the_work(
    cds: ComputeDataService, pilot: PilotCompute, store: PilotData
) -> None:
    """B is submitted with A: it waits for the data unit that A writes."""
    second = []
    for number in range(4):
        a = cds.submit_compute_unit(
            {
                "executable": "/bin/echo",
                "arguments": ["A", number],
                "output": "a.txt",
                "output_data": [{f"chain-{number}": ["a.txt"]}],
            }
        )
        second.append(
            cds.submit_compute_unit(
                {
                    "executable": "/bin/sed",
                    "arguments": ["s/A/B after A/", "a.txt"],
                    "input_data": [a.output_data[f"chain-{number}"]],
                }
            )
        )
    cds.wait(LONG_S)
    assert [output(unit) for unit in second] == [f"B after A {number}\n" for number in range(4)]


def test_coupled_ensembles(cds: ComputeDataService, pilot: PilotCompute) -> None:
    """A and B run side by side; C takes what both left in their working directories."""
    ensembles = {
        name: cds.submit_compute_unit_batch(
            {"executable": "/bin/echo", "arguments": [name, n], "output": f"{name}.txt"} for n in range(3)
        )
        for name in "AB"
    }
    cds.wait(LONG_S)
    coupled = [
        cds.submit_compute_unit(
            {
                "executable": "/bin/cat",
                "arguments": [
                    f"{a.get_local_working_directory()}/A.txt",
                    f"{b.get_local_working_directory()}/B.txt",
                ],
            }
        )
        for a, b in zip(ensembles["A"], ensembles["B"], strict=True)
    ]
    cds.wait(LONG_S)
    assert [output(unit) for unit in coupled] == [f"A {n}\nB {n}\n" for n in range(3)]


#: Draws one tile of the Mandelbrot set: mandelbrot.py SIZE TILE X Y writes X-Y.pgm.
MANDELBROT = '''
import sys


def tile(size, width, left, top):
    """Grey values of a tile, row by row."""
    rows = bytearray()
    for y in range(top, top + width):
        for x in range(left, left + width):
            c = complex(3.0 * x / size - 2.0, 3.0 * y / size - 1.5)
            z, n = 0j, 0
            while abs(z) <= 2 and n < 60:
                z, n = z * z + c, n + 1
            rows.append(4 * n)
    return bytes(rows)


if __name__ == "__main__":
    size, width, left, top = map(int, sys.argv[1:])
    with open(f"{left}-{top}.pgm", "wb") as file:
        file.write(b"P5 %d %d 255\\n" % (width, width) + tile(size, width, left, top))
'''


def assembled(size: int, width: int, tiles: dict[str, bytes]) -> bytes:
    """The grey values of the whole picture."""
    picture = bytearray(size * size)
    for name, pgm in tiles.items():
        left, top = map(int, name.removesuffix(".pgm").split("-"))
        header, _, grey = pgm.partition(b"\n")
        assert header == b"P5 %d %d 255" % (width, width)
        for row in range(width):
            begin = (top + row) * size + left
            picture[begin : begin + width] = grey[row * width : (row + 1) * width]
    return bytes(picture)


def test_mandelbrot_tiles(cds: ComputeDataService, pilot: PilotCompute, store: PilotData, tmp_path: Path) -> None:
    size, width = 48, 16
    (tmp_path / "mandelbrot.py").write_text(MANDELBROT)
    program = cds.submit_data_unit({"file_urls": [tmp_path / "mandelbrot.py"]})
    picture = cds.submit_data_unit({"name": "picture"})
    cds.submit_compute_unit_batch(
        {
            "executable": sys.executable,
            "arguments": ["-S", "mandelbrot.py", size, width, left, top],
            "input_data": [program],
            "output_data": [{picture: ["*.pgm"]}],
        }
        for left in range(0, size, width)
        for top in range(0, size, width)
    )
    cds.wait(LONG_S)
    tiles = read(picture.export(tmp_path / "picture"))
    assert len(tiles) == (size // width) ** 2
    direct: dict[str, Any] = {"__name__": "mandelbrot"}
    exec(MANDELBROT, direct)
    assert assembled(size, width, tiles) == direct["tile"](size, size, 0, 0)


def test_multiple_pilots(
    cds: ComputeDataService, pcs: PilotComputeService, pilot: PilotCompute, tmp_path: Path
) -> None:
    """Units with labels run where they say, though another pilot is idle; the others run anywhere."""
    sites = {
        name: pcs.create_pilot(
            {
                "service_url": "fork://localhost",
                "number_of_processes": 1,
                "working_directory": str(tmp_path / name),
                "affinity_datacenter_label": name,
            }
        )
        for name in ("north", "south")
    }
    try:
        labelled = {
            name: cds.submit_compute_unit_batch(
                {"executable": "/bin/pwd", "affinity_datacenter_label": name, "affinity": "require"} for _ in range(3)
            )
            for name in sites
        }
        others = cds.submit_compute_unit_batch({"executable": "/bin/true"} for _ in range(6))
        cds.wait(LONG_S)
        assert {unit.state for unit in [*labelled["north"], *labelled["south"], *others]} == {State.Done}
        for name, units in labelled.items():
            assert {unit.get_details()["pilot"] for unit in units} == {sites[name].id}
            assert [output(unit).strip() for unit in units] == [str(tmp_path / name / unit.id) for unit in units]
        assert {unit.get_details()["pilot"] for unit in others} <= {p.id for p in pcs.list_pilots()}
    finally:
        for site in sites.values():
            site.cancel()


def test_unit_direct_to_a_pilot(pilot: PilotCompute) -> None:
    units = [pilot.submit_compute_unit({"executable": "/bin/echo", "arguments": ["direct", n]}) for n in range(3)]
    assert pilot.wait(LONG_S) == "Running"  # the pilot goes on when its units have ended
    assert [unit.get_state() for unit in units] == ["Done"] * 3
    assert [output(unit) for unit in units] == [f"direct {n}\n" for n in range(3)]
    assert {unit.id for unit in units} <= {unit.id for unit in pilot.list_compute_units()}


# ---------------------------------------------------------------- data


def test_data_unit_to_two_stores(
    cds: ComputeDataService, new_store: NewStore, files: dict[str, bytes], tmp_path: Path
) -> None:
    stores = [new_store(affinity_datacenter_label="here"), new_store(affinity_datacenter_label="there")]
    unit = cds.submit_data_unit({"file_urls": [f"{tmp_path}/data/*"], "number_of_replicas": 2})
    assert unit.wait(LONG_S) == "Running"
    unit.wait_replicas(2, LONG_S)
    assert {store.id for store in unit.get_pilot_data()} == {store.id for store in stores}
    for name, entry in unit.list().items():
        assert len(entry["pilot_data"]) == 2
        for store, url in zip(unit.get_pilot_data(), entry["pilot_data"], strict=True):
            options = store._store.root.options
            with fsspec.open(url, **options) as file:
                assert file.read() == files[name]
    assert unit.list_files() == sorted(files)
    assert unit.nbytes == sum(map(len, files.values()))


def test_replicate_to_a_second_store(
    cds: ComputeDataService, new_store: NewStore, files: dict[str, bytes], tmp_path: Path
) -> None:
    first, second, third = new_store(), new_store(), new_store()
    unit = first.submit_data_unit({"file_urls": [f"{tmp_path}/data/"]})
    unit.wait(LONG_S)
    assert [store.id for store in unit.list_pilot_data()] == [first.id]
    assert second.submit_data_unit(data_unit=unit) is unit
    unit.add_pilot_data(third)
    assert third.wait(LONG_S) == "Running"
    assert [store.id for store in unit.list_pilot_data()] == [first.id, second.id, third.id]
    assert second.get_du(unit.get_url()).id == unit.id
    assert second.url_for_du(unit).startswith(second.service_url)
    first.remove_du(unit)
    second.remove_du(unit)
    assert [store.id for store in unit.list_pilot_data()] == [third.id]
    assert first.list_data_units() == []
    assert read(third.export_du(unit, tmp_path / "exported")) == files


def test_reconnect_to_a_data_unit_from_a_second_process(
    new_store: NewStore, files: dict[str, bytes], tmp_path: Path
) -> None:
    unit = new_store().submit_data_unit({"file_urls": [f"{tmp_path}/data/"], "name": "shared"})
    unit.wait(LONG_S)
    (tmp_path / "three.txt").write_text("three\n")
    printed = run_python(
        """
        import sys
        from dpilot import DataUnit

        unit = DataUnit(du_url=sys.argv[1])
        assert unit.wait(30) == "Running"
        print(unit.name, *unit.list_files())
        unit.export("exported")
        unit.add_files(["three.txt"])
        """,
        unit.get_url(),
        cwd=tmp_path,
    )
    assert printed.split() == ["shared", *sorted(files)]
    assert read(tmp_path / "exported") == files
    assert unit.list_files() == sorted([*files, "three.txt"])


def test_compute_data_round_trip(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, files: dict[str, bytes], tmp_path: Path
) -> None:
    new_store()
    source = cds.submit_data_unit({"file_urls": [f"{tmp_path}/data/"]})
    result = cds.submit_data_unit({"name": "result"})
    unit = cds.submit_compute_unit(
        {
            "executable": "/bin/sh",
            "arguments": [
                "-c",
                "mkdir sub; for f in one.txt two.bin; do cp $f sub/$f.out; done; echo log > a.log; echo done",
            ],
            "input_data": [source],
            "output_data": [{result: ["sub/*.out", "std*.txt"]}, {"logs": "*.log"}],
        }
    )
    assert cds.wait(LONG_S) == "Running"
    assert unit.get_state() == "Done", unit.exception()
    assert isinstance(result, DataUnit)
    assert read(result.export(tmp_path / "result")) == {
        **{f"sub/{name}.out": content for name, content in files.items()},
        "stdout.txt": b"done\n",
        "stderr.txt": b"",
    }
    assert read(unit.output_data["logs"].export(f"file://localhost{tmp_path}/logs")) == {"a.log": b"log\n"}
    assert {du.id for du in cds.list_data_units()} == {source.id, result.id, unit.output_data["logs"].id}


# ---------------------------------------------------------------- reconnection and callbacks


def test_reconnect_to_everything_from_a_second_process(
    cds: ComputeDataService, pcs: PilotComputeService, pds: PilotDataService, pilot: PilotCompute, store: PilotData
) -> None:
    unit = cds.submit_compute_unit(
        {"executable": "/bin/echo", "arguments": ["hello"], "output_data": [{"out": "stdout.txt"}]}
    )
    call = cds.submit(lambda: {"answer": 42})
    cds.wait(LONG_S)
    printed = run_python(
        """
        import sys
        from dpilot import (
            ComputeDataService, ComputeUnit, DataUnit, PilotCompute, PilotComputeService, PilotData, PilotDataService
        )

        cds, pcs, pds, pilot, store, unit, call, out = sys.argv[1:]
        services = ComputeDataService(cds), PilotComputeService(pcs_url=pcs), PilotDataService(pds_url=pds)
        assert {u.get_url() for u in services[0].list_compute_units()} == {unit, call}
        assert pilot in [p.get_url() for p in services[1].list_pilots()]
        assert [p.get_url() for p in services[2].list_pilots()] == [store]
        again = services[0].submit_compute_unit({"executable": "/bin/true"})
        assert services[0].wait(30) == "Running"
        assert again.get_state() == "Done"
        assert PilotCompute(pilot_url=pilot).get_free_nodes() == 2
        assert [u.get_url() for u in PilotData(pd_url=store).list_data_units()] == [out]
        assert ComputeUnit(cu_url=call).result(30) == {"answer": 42}
        unit = ComputeUnit(cu_url=unit)
        assert unit.wait(30) == "Done"
        assert unit.output_data["out"].get_url() == out
        print(*(s.get_state() for s in services), unit.get_local_working_directory())
        """,
        *(o.get_url() for o in (cds, pcs, pds, pilot, store, unit, call, unit.output_data["out"])),
        cwd=Path(store.service_url.removeprefix("file://")),
    )
    assert printed.split() == ["Running", "Running", "Running", unit.get_local_working_directory()]
    assert cds.get_state() == "Running"  # the end of the other process has ended nothing here
    assert cds.submit(lambda: 1).result(LONG_S) == 1


class Recorder(Callback):
    """Records what it is told, and says when something has ended."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, State]] = []
        self.ended = threading.Event()

    def cb(self, unit: Any, member: str, value: State) -> None:
        self.told.append((unit.get_id(), member, value))
        if value.is_final:
            self.ended.set()


def test_callbacks_as_in_bigjob(cds: ComputeDataService, pcs: PilotComputeService, tmp_path: Path) -> None:
    pilot_recorder, unit_recorder = Recorder(), Recorder()
    pilot = pcs.create_pilot({"service_url": "fork://localhost", "working_directory": str(tmp_path)})
    pilot.set_callback("state", pilot_recorder)
    unit = pilot.submit_compute_unit({"executable": "/bin/sleep", "arguments": [0.2]})
    unit.set_callback("state", unit_recorder)
    assert unit_recorder.ended.wait(LONG_S)
    pilot.cancel()
    assert pilot_recorder.ended.wait(LONG_S)
    assert unit_recorder.told == [(unit.id, "state", state) for state in (State.Running, State.Done)]
    assert pilot_recorder.told == [(pilot.id, "state", state) for state in (State.Running, State.Canceled)]


def test_services_of_one_process_share_the_embedded_scheduler(pcs: PilotComputeService) -> None:
    with PilotDataService() as pds:
        assert pds.get_url().rpartition("/")[0] == pcs.get_url().rpartition("/")[0]
        assert Session.join(None).address == pcs.coordination_url
