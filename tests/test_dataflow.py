"""Units and their data: what goes in, what comes out, in which order, and what is said when something is wrong."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import dpilot
from dpilot import (
    ComputeDataService,
    ComputeUnit,
    DataError,
    DataUnit,
    DescriptionError,
    ExecutableError,
    InputError,
    PilotCompute,
    PilotComputeService,
    PilotData,
    PilotDataService,
    PilotTimeoutError,
    StagedData,
    StagingError,
    State,
    StateError,
    StoreFullError,
    UnitCanceledError,
    UnitError,
)
from tests.helpers import eventually

pytestmark = pytest.mark.cluster

#: More than anything here takes, so that only a failure waits for it.
LONG_S = 30.0


@pytest.fixture(scope="module")
def pcs() -> Iterator[PilotComputeService]:
    with PilotComputeService() as service:
        yield service


@pytest.fixture(scope="module", autouse=True)
def pilot(pcs: PilotComputeService, tmp_path_factory: pytest.TempPathFactory) -> PilotCompute:
    """One pilot for all tests here, on the machine "m1" in the datacenter "eu"."""
    directory = tmp_path_factory.mktemp("work")
    return pcs.create_pilot(
        {
            "service_url": "fork://localhost",
            "number_of_processes": 2,
            "working_directory": str(directory),
            "affinity_datacenter_label": "eu",
            "affinity_machine_label": "m1",
        }
    )


@pytest.fixture
def store(pds: PilotDataService, tmp_path: Path) -> PilotData:
    """A store on the pilot's machine."""
    return new_store(pds, tmp_path / "store", datacenter="eu", machine="m1")


def new_store(pds: PilotDataService, path: Path, size: Any = None, **labels: str) -> PilotData:
    return pds.create_pilot(
        {
            "service_url": f"file://{path}",
            **({"size": size} if size is not None else {}),
            **{f"affinity_{name}_label": label for name, label in labels.items()},
        }
    )


def write(path: Path, content: str = "") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return str(path)


def new_data(store: PilotData, tmp_path: Path, name: str = "in.txt", content: str = "input\n") -> DataUnit:
    """A data unit of one file, ready."""
    unit = store.submit_data_unit({"file_urls": [write(tmp_path / "source" / name, content)]})
    assert unit.wait(LONG_S) == "Running"
    return unit


def shell(script: str, **more: Any) -> dict[str, Any]:
    return {"executable": "/bin/sh", "arguments": ["-c", script], **more}


def sandbox_of(unit: ComputeUnit) -> Path:
    return Path(unit.get_local_working_directory())


def output(unit: ComputeUnit) -> str:
    assert unit.wait(LONG_S) == "Done", unit.exception()
    return (sandbox_of(unit) / "stdout.txt").read_text()


def error_of(unit: ComputeUnit) -> BaseException:
    """Why a unit failed."""
    assert unit.wait(LONG_S) == "Failed"
    error = unit.exception()
    assert error is not None
    return error


def text(unit: DataUnit, name: str, tmp_path: Path) -> str:
    return (unit.export(tmp_path / f"export-{unit.id}") / name).read_text()


# ---------------------------------------------------------------- inputs


def test_input_on_the_same_machine_is_linked(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    data = new_data(store, tmp_path, "sub.txt", "12345")
    unit = cds.submit_compute_unit({"executable": "/bin/cat", "arguments": ["sub.txt"], "input_data": [data]})
    assert output(unit) == "12345"
    staged = sandbox_of(unit) / "sub.txt"
    assert staged.is_symlink()
    assert str(staged.resolve()) == data.list()["sub.txt"]["local"]
    details = unit.get_details()
    assert details["bytes"] == {"local": 5, "same_datacenter": 0, "cross_datacenter": 0}
    assert details["sandbox"] == str(sandbox_of(unit))
    assert details["pilot"] == unit.explain().pilot


def test_what_is_seen_is_linked_whatever_its_machine_is_called(
    cds: ComputeDataService, pds: PilotDataService, tmp_path: Path
) -> None:
    """As on a file system that the machines of a datacenter share."""
    data = new_data(new_store(pds, tmp_path / "shared", datacenter="eu", machine="m2"), tmp_path)
    unit = cds.submit_compute_unit(shell("cat in.txt", input_data=[data]))
    assert output(unit) == "input\n"
    assert (sandbox_of(unit) / "in.txt").resolve().is_relative_to(tmp_path / "shared")


def test_input_from_elsewhere_is_copied_once(cds: ComputeDataService, pds: PilotDataService, tmp_path: Path) -> None:
    data = new_data(new_store(pds, tmp_path / "far", datacenter="us"), tmp_path, content="12345")
    unit = cds.submit_compute_unit(shell("cat in.txt", input_data=[data.get_url()]))
    assert output(unit) == "12345"
    assert not (sandbox_of(unit) / "in.txt").resolve().is_relative_to(tmp_path / "far")
    nothing = {"local": 0, "same_datacenter": 0, "cross_datacenter": 0}
    assert unit.get_details()["bytes"] == {**nothing, "cross_datacenter": 5}
    again = cds.submit_compute_unit(shell("cat in.txt", input_data=[data]))
    assert output(again) == "12345"
    assert again.get_details()["bytes"] == {**nothing, "local": 5}  # from the machine's cache


def test_bytes_of_several_inputs_and_the_nearest_replica(
    cds: ComputeDataService, pds: PilotDataService, store: PilotData, tmp_path: Path
) -> None:
    far = new_store(pds, tmp_path / "far", datacenter="us")
    both = new_data(far, tmp_path, "both.txt", "1" * 10)
    store.put_du(both)
    remote = new_data(far, tmp_path, "remote.txt", "1" * 100)
    call = cds.submit(lambda data: sorted(data.files), both, input_data=[remote])
    assert call.result(LONG_S) == ["both.txt"]
    assert call.get_details()["bytes"] == {"local": 10, "same_datacenter": 0, "cross_datacenter": 100}


def test_a_tree_of_files_keeps_its_names(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    for name in ("a.txt", "sub/b c.txt", "sub/deep/d"):
        write(tmp_path / "tree" / name, name)
    data = cds.submit_data_unit({"file_urls": [f"{tmp_path}/tree/"]})
    unit = cds.submit_compute_unit(shell("cat a.txt 'sub/b c.txt' sub/deep/d", input_data=[data]))
    assert output(unit) == "a.txtsub/b c.txtsub/deep/d"


def test_two_inputs_with_a_file_of_the_same_name(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    inputs = [new_data(store, tmp_path, "same.txt", content) for content in ("1", "2")]
    error = error_of(cds.submit_compute_unit({"executable": "/bin/true", "input_data": inputs}))
    assert isinstance(error, StagingError)
    assert "'same.txt'" in str(error)
    assert "rename one of the two" in str(error)
    # As arguments, each has a directory of its own.
    call = cds.submit(lambda *units: "".join(Path(u.files["same.txt"]).read_text() for u in units), *inputs)
    assert call.result(LONG_S) == "12"


def test_an_input_whose_files_were_deleted_behind_its_back(
    cds: ComputeDataService, store: PilotData, tmp_path: Path
) -> None:
    data = new_data(store, tmp_path)
    Path(data.list()["in.txt"]["local"]).unlink()
    error = error_of(cds.submit_compute_unit({"executable": "/bin/true", "input_data": [data]}))
    assert isinstance(error, StagingError)
    assert data.id in str(error)
    assert "is not there" in str(error)


def test_the_next_replica_is_taken_where_the_nearest_is_broken(
    cds: ComputeDataService, pds: PilotDataService, store: PilotData, tmp_path: Path
) -> None:
    data = new_data(store, tmp_path)
    new_store(pds, tmp_path / "far", datacenter="us").put_du(data)
    broken = Path(data.list()["in.txt"]["local"])
    broken.unlink()
    unit = cds.submit_compute_unit({"executable": "/bin/cat", "arguments": ["in.txt"], "input_data": [data]})
    assert output(unit) == "input\n"
    assert unit.get_details()["bytes"]["cross_datacenter"] == len("input\n")


def test_file_transfer(cds: ComputeDataService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt", "a")
    unit = cds.submit_compute_unit(
        shell(
            "cat a.txt sub/b.txt c.txt; echo own >> a.txt",
            file_transfer=[
                f"{tmp_path}/a.txt > BIGJOB_WORK_DIR",
                f"ssh://localhost{tmp_path}/a.txt > DPILOT_WORK_DIR/sub/b.txt",
                "a.txt > c.txt",  # relative to where the client is
            ],
        )
    )
    assert output(unit) == "aaa"
    assert (tmp_path / "a.txt").read_text() == "a"


@pytest.mark.parametrize(
    ("source", "said"),
    [("missing.txt", "missing.txt"), ("*.txt", "2 files"), ("", "3 files")],
)
def test_file_transfer_that_cannot_be_done(cds: ComputeDataService, tmp_path: Path, source: str, said: str) -> None:
    for name in ("a.txt", "b.txt", "c.dat"):
        write(tmp_path / "files" / name, "")
    transfer = f"{tmp_path}/files/{source} > in.txt"
    error = error_of(cds.submit_compute_unit({"executable": "/bin/true", "file_transfer": [transfer]}))
    assert isinstance(error, StagingError)
    assert "file_transfer" in str(error)
    assert said in str(error)


# ---------------------------------------------------------------- outputs


def test_outputs_to_a_data_unit_that_is_there_and_to_a_new_one(
    cds: ComputeDataService, store: PilotData, tmp_path: Path
) -> None:
    data = new_data(store, tmp_path)
    unit = cds.submit_compute_unit(
        shell(
            "echo 1 > 1.out; echo 2 > 2.out; mkdir sub; echo 3 > sub/3.out",
            output_data=[{data: "*.out"}, {"new": ["**/*.out", "stdout.txt"]}],
        )
    )
    assert unit.wait(LONG_S) == "Done"
    assert data.list_files() == ["1.out", "2.out", "in.txt"]
    new = unit.output_data["new"]
    assert new.name == "new"
    assert new.get_state() == "Running"
    assert new.list_files() == ["1.out", "2.out", "stdout.txt", "sub/3.out"]
    assert text(new, "sub/3.out", tmp_path) == "3\n"
    assert {du.id for du in store.list_data_units()} == {data.id, new.id}


def test_several_units_write_to_one_data_unit(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    """They may end at the same time, and who reads it waits for all of them."""
    shared = cds.submit_data_unit({"name": "shared"})
    writers = cds.submit_compute_unit_batch(
        shell(f"sleep 0.{n}; echo {n} > {n}.txt", output_data=[{shared: f"{n}.txt"}]) for n in range(6)
    )
    reader = cds.submit_compute_unit(shell("cat ?.txt", input_data=[shared]))
    assert output(reader) == "0\n1\n2\n3\n4\n5\n"
    assert {unit.state for unit in writers} == {State.Done}
    started = next(t for state, t in reader.history if state is State.Staging)
    assert started > max(unit.history[-1].timestamp for unit in writers) - 0.1  # Dask's estimate of clocks is in it


def test_two_units_that_write_the_same_name(cds: ComputeDataService, store: PilotData) -> None:
    shared = cds.submit_data_unit({})
    units = cds.submit_compute_unit_batch(shell("echo x > x.txt", output_data=[{shared: "x.txt"}]) for _ in range(2))
    states = sorted(unit.wait(LONG_S) for unit in units)
    assert states == ["Done", "Failed"]
    error = error_of(next(unit for unit in units if unit.state == "Failed"))
    assert isinstance(error, StagingError)
    assert "'x.txt'" in str(error)


def test_a_unit_canceled_while_it_waits_for_another_writer(cds: ComputeDataService, store: PilotData) -> None:
    """It leaves the queue of those that write to one data unit; who stands behind it goes on."""
    shared = cds.submit_data_unit({"name": "shared"})

    def write_to_it(script: str) -> tuple[ComputeUnit, threading.Event]:
        collecting = threading.Event()
        unit = cds.submit_compute_unit(shell(script, output_data=[{shared: "*.out"}]))
        unit.set_callback(lambda _unit, _member, state: collecting.set() if state is State.Staging else None)
        return unit, collecting

    big, big_writes = write_to_it("sleep 0.1; truncate -s 256M big.out")
    assert big_writes.wait(LONG_S)
    canceled, waits = write_to_it("sleep 0.03; touch canceled.out")
    last, _ = write_to_it("touch last.out")
    assert waits.wait(LONG_S)
    canceled.cancel()
    assert (big.state, canceled.state) == ("Staging", "Canceled")
    assert [unit.wait(LONG_S) for unit in (big, last)] == ["Done", "Done"]


def test_missing_output(cds: ComputeDataService, store: PilotData) -> None:
    output = [{"results": ["*.out", "*.dat"]}]
    unit = cds.submit_compute_unit(shell("echo 1 > 1.out", output_data=output, empty_output="error"))
    error = error_of(unit)
    assert isinstance(error, StagingError)
    assert "'*.dat'" in str(error)
    assert "'1.out'" in str(error)  # what there is instead
    results = unit.output_data["results"]
    assert results.wait(LONG_S) == "Failed"
    assert unit.id in str(results.exception())
    assert store.list_data_units() == []


def test_missing_output_is_told(cds: ComputeDataService, store: PilotData, caplog: pytest.LogCaptureFixture) -> None:
    output = [{"results": ["*.out", "*.dat"]}, {"none": "*.dat"}]
    with caplog.at_level(logging.WARNING, "dpilot"):
        unit = cds.submit_compute_unit(shell("echo 1 > 1.out", output_data=output))
        assert unit.wait(LONG_S) == "Done", unit.exception()
    assert unit.output_data["results"].list_files() == ["1.out"]
    (about_results, about_none) = unit.get_details()["warnings"]
    assert unit.id in about_none
    assert "'*.dat'" in about_results
    assert about_results in caplog.text
    # What was written, if nothing, can be read.
    assert unit.output_data["none"].list_files() == []
    reader = cds.submit_compute_unit(shell("ls", input_data=[unit.output_data["none"]]))
    assert reader.wait(LONG_S) == "Done", reader.exception()


def test_a_unit_that_writes_to_its_input(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    data = new_data(store, tmp_path)
    spoil = "chmod u+w $(readlink in.txt); echo more >> in.txt"
    error = error_of(cds.submit_compute_unit(shell(spoil, input_data=[data])))
    assert isinstance(error, StagingError)
    assert "'in.txt'" in str(error)
    assert "input_mode" in str(error)
    # There is no replica to repair it from: nobody is given what is wrong.
    assert isinstance(error_of(cds.submit_compute_unit(shell("cat in.txt", input_data=[data]))), StagingError)


def test_a_replica_that_a_unit_has_spoilt_is_made_anew(
    cds: ComputeDataService, pds: PilotDataService, store: PilotData, tmp_path: Path
) -> None:
    data = new_data(store, tmp_path)
    data.add_pilot_data(pds.create_pilot({"service_url": f"file://{tmp_path / 'second'}"}))
    data.wait_replicas(2, LONG_S)
    spoil = "chmod u+w $(readlink in.txt); echo more >> in.txt"
    assert isinstance(error_of(cds.submit_compute_unit(shell(spoil, input_data=[data]))), StagingError)
    copies = [tmp_path / directory / data.id / "in.txt" for directory in ("store", "second")]
    eventually(lambda: all(c.exists() and c.read_text() == "input\n" for c in copies), "the replica is made anew")
    eventually(lambda: len(data._on) == 2 and not data._coming, "it is in the catalogue again")
    assert set(map(tuple, data.verify(timeout=LONG_S).values())) == {()}


def test_inputs_that_are_copies(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    data = new_data(store, tmp_path)
    unit = cds.submit_compute_unit(
        shell(
            "echo more >> in.txt; cat in.txt", input_data=[data], input_mode="copy", output_data=[{"out": "stdout.txt"}]
        )
    )
    assert output(unit) == "input\nmore\n"
    assert text(data, "in.txt", tmp_path) == "input\n"
    assert set(map(tuple, data.verify(timeout=LONG_S).values())) == {()}


def test_output_without_a_store(pcs: PilotComputeService) -> None:
    with ComputeDataService() as cds:
        cds.add_pilot_compute_service(pcs)
        error = error_of(cds.submit_compute_unit(shell("echo", output_data=[{"out": "stdout.txt"}])))
    assert isinstance(error, StagingError)
    assert "add a PilotData" in str(error)


def test_outputs_of_a_function(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    def work() -> str:
        (dpilot.sandbox() / "result.txt").write_text("from a function")
        return str(dpilot.sandbox())

    call = cds.submit(work, output_data=[{"results": "*.txt"}], name="worker")
    assert call.result(LONG_S) == call.get_local_working_directory()
    assert text(call.output_data["results"], "result.txt", tmp_path) == "from a function"


def test_sandbox_outside_of_a_unit() -> None:
    with pytest.raises(StateError, match="outside of a compute unit"):
        dpilot.sandbox()


def test_a_unit_that_reads_what_it_writes_is_refused(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    data = new_data(store, tmp_path)
    before = len(cds.list_compute_units())
    with pytest.raises(DescriptionError, match=f"reads and writes {data.id}") as caught:
        cds.submit_compute_unit({"executable": "/bin/true", "input_data": [data], "output_data": [{data: "*"}]})
    assert caught.value.field == "output_data"
    with pytest.raises(DescriptionError, match=f"reads and writes {data.id}"):
        cds.submit(print, [data], output_data=[{data.get_url(): "*"}])
    assert len(cds.list_compute_units()) == before
    assert output(cds.submit_compute_unit({"executable": "/bin/echo", "arguments": ["on"]})) == "on\n"


# ---------------------------------------------------------------- chains


def test_a_chain_submitted_at_once(cds: ComputeDataService, store: PilotData) -> None:
    """Each waits for what it reads, though both slots are free."""
    unit = cds.submit_compute_unit(shell("sleep 0.2; echo 0 > 0.txt", output_data=[{"step-0": "0.txt"}]))
    chain = [unit]
    for n in range(1, 5):
        unit = cds.submit_compute_unit(
            shell(
                f"(cat {n - 1}.txt; echo {n}) > {n}.txt",
                input_data=[unit.output_data[f"step-{n - 1}"]],
                output_data=[{f"step-{n}": f"{n}.txt"}],
            )
        )
        chain.append(unit)
    reason = chain[-1].explain().reason
    assert chain[-2].id in reason
    assert unit.output_data["step-4"].id not in reason
    last = cds.submit_compute_unit(
        {"executable": "/bin/cat", "arguments": ["4.txt"], "input_data": [unit.output_data["step-4"]]}
    )
    assert output(last) == "0\n1\n2\n3\n4\n"
    ends = [u.history[-1].timestamp for u in chain]
    assert ends == sorted(ends)


def test_a_consumer_submitted_after_its_producer_ended(cds: ComputeDataService, store: PilotData) -> None:
    producer = cds.submit_compute_unit(shell("echo x > x.txt", output_data=[{"x": "x.txt"}]))
    producer.wait(LONG_S)
    url = producer.output_data["x"].get_url()
    assert output(cds.submit_compute_unit(shell("cat x.txt", input_data=[url]))) == "x\n"


def test_consumers_of_a_failed_producer(cds: ComputeDataService, store: PilotData) -> None:
    """They fail with the reason, those submitted later and those further down the chain, too."""
    producer = cds.submit_compute_unit(shell("echo broken >&2; exit 3", output_data=[{"x": "x.txt"}]))

    def consume(unit: ComputeUnit, *names: str) -> ComputeUnit:
        inputs = [unit.output_data[name] for name in names]
        return cds.submit_compute_unit(shell("true", input_data=inputs, output_data=[{"y": "stdout.txt"}]))

    early = consume(producer, "x")
    further = consume(early, "y")
    assert producer.wait(LONG_S) == "Failed"
    late = consume(producer, "x")
    last = consume(late, "y")
    for unit in (early, further, late, last):
        error = error_of(unit)
        assert isinstance(error, InputError), unit
        assert producer.id in str(error)
        assert "exit status 3" in str(error)
    assert cds.wait(LONG_S) == "Running"
    assert not sandbox_exists(early)
    for unit, name in ((producer, "x"), (early, "y"), (last, "y")):
        lost = unit.output_data[name]
        assert lost.wait(LONG_S) == "Failed"
        assert isinstance(lost.exception(), InputError)
        with pytest.raises(InputError):
            lost.list()


def sandbox_exists(unit: ComputeUnit) -> bool:
    try:
        return sandbox_of(unit).exists()
    except StateError:
        return False


def test_consumers_of_a_canceled_producer(cds: ComputeDataService, store: PilotData) -> None:
    producer = cds.submit_compute_unit(shell("sleep 60", output_data=[{"x": "*"}]))
    consumer = cds.submit_compute_unit(shell("true", input_data=[producer.output_data["x"]]))
    producer.cancel()
    assert producer.state == "Canceled"
    error = error_of(consumer)
    assert isinstance(error, InputError)
    assert f"{producer.id} was canceled" in str(error)


def test_consumers_of_a_data_unit_that_never_arrived(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    write(tmp_path / "store" / "blocked")
    source = Path(write(tmp_path / "a.txt", "a"))
    data = DataUnit(pilot_data=store, data_unit_description={"file_urls": [source]})
    data.wait(LONG_S)
    store.remove_du(data, force=True)
    assert data.wait(LONG_S) == "Canceled"
    error = error_of(cds.submit_compute_unit({"executable": "/bin/true", "input_data": [data]}))
    assert isinstance(error, InputError)
    assert "removed" in str(error)


# ---------------------------------------------------------------- functions and their arguments


def test_a_data_unit_as_an_argument(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    data = new_data(store, tmp_path)

    def look(staged: StagedData) -> tuple[Any, ...]:
        with staged.open("in.txt") as binary, staged.open("in.txt", "r") as text_file:
            return (
                sorted(staged.files),
                Path(staged.files["in.txt"]).parent == staged.path,
                binary.read(),
                text_file.read(),
            )

    assert cds.submit(look, data).result(LONG_S) == (["in.txt"], True, b"input\n", "input\n")
    with pytest.raises(UnitError, match=r"no file 'other'; its files: in\.txt"):
        cds.submit(lambda staged: staged.open("other"), data).result(LONG_S)
    with pytest.raises(UnitError, match="read-only"):
        cds.submit(lambda staged: staged.open("in.txt", "w"), data).result(LONG_S)


def test_data_units_inside_of_arguments(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    units = [new_data(store, tmp_path, f"{n}.txt", str(n)) for n in range(3)]

    def total(staged: list[StagedData], *, more: dict[str, Any]) -> int:
        return sum(int(s.open(name).read()) for s in [*staged, more["last"]] for name in s.files)

    call = cds.submit(total, units[:2], more={"last": units[2]})
    assert call.result(LONG_S) == 3


def test_input_data_of_a_function_lies_in_its_sandbox(
    cds: ComputeDataService, store: PilotData, tmp_path: Path
) -> None:
    data = new_data(store, tmp_path)
    call = cds.submit(
        lambda staged: ((dpilot.sandbox() / "in.txt").read_text(), staged.open("in.txt", "r").read()),
        data,
        input_data=[data],
    )
    assert call.result(LONG_S) == ("input\n", "input\n")


def test_a_compute_unit_as_an_argument(cds: ComputeDataService, pcs: PilotComputeService) -> None:
    one = cds.submit(lambda: 1)
    two = cds.submit(lambda x: x + 1, one)
    nested = cds.submit(lambda pair, *, other: (sum(pair["pair"]), other), {"pair": [one, two]}, other=two)
    assert nested.result(LONG_S) == (3, 2)
    big = cds.submit(lambda: b"x" * 100_000)
    assert cds.submit(len, big).result(LONG_S) == 100_000
    assert len(big.result(LONG_S)) == 100_000
    future = pcs.client.submit(lambda: 5, pure=False)
    assert cds.submit(lambda x: x * 2, future).result(LONG_S) == 10
    assert cds.submit(lambda x: x, cds.submit_compute_unit({"executable": "/bin/true"})).result(LONG_S) is None


def test_arguments_that_failed_or_were_canceled(cds: ComputeDataService) -> None:
    def fail() -> None:
        raise KeyError("the reason")

    failed = cds.submit(fail)
    for _ in ("before it failed", "after"):
        with pytest.raises(KeyError, match="the reason"):
            cds.submit(print, failed).result(LONG_S)
    canceled = cds.submit_compute_unit({"executable": "/bin/sleep", "arguments": [60]})
    waiting = cds.submit(print, canceled)
    canceled.cancel()
    assert waiting.wait(LONG_S) in ("Canceled", "Failed")
    with pytest.raises(InputError, match="canceled"):
        cds.submit(print, canceled).result(LONG_S)
    cds.wait(LONG_S)


def test_an_exception_comes_with_its_traceback(cds: ComputeDataService) -> None:
    def at_fault(x: int) -> float:
        return 1 / x

    call = cds.submit(at_fault, 0)
    with pytest.raises(ZeroDivisionError) as caught:
        call.result(LONG_S)
    assert "at_fault" in [entry.name for entry in caught.traceback]
    assert call.get_state() == "Failed"
    assert isinstance(call.exception(), ZeroDivisionError)


# ---------------------------------------------------------------- data units and stores


def test_add_remove_list_and_export_files(
    cds: ComputeDataService, pds: PilotDataService, store: PilotData, tmp_path: Path
) -> None:
    data = new_data(store, tmp_path)
    other = new_store(pds, tmp_path / "other")
    data.add_pilot_data(other)
    data.wait_replicas(2, LONG_S)
    data.add_files([write(tmp_path / "more.txt", "more"), write(tmp_path / "deep" / "x" / "y.txt", "y")])
    assert data.list_files() == ["in.txt", "more.txt", "y.txt"]
    listed = data.list()
    assert listed["more.txt"]["nbytes"] == 4
    assert [url.rpartition("/")[2] for url in listed["more.txt"]["pilot_data"]] == ["more.txt"] * 2
    for url in listed["more.txt"]["pilot_data"]:
        assert Path(url.removeprefix("file://")).read_text() == "more"
    with pytest.raises(DataError, match=r"'more\.txt' already"):
        data.add_files([tmp_path / "more.txt"])
    data.remove_files(["in.txt"])
    assert data.list_files() == ["more.txt", "y.txt"]
    with pytest.raises(DataError, match=r"absent\.txt"):
        data.remove_files(["absent.txt"])
    exported = data.export(tmp_path / "new" / "directory", names=["y.txt"])
    assert [path.name for path in exported.iterdir()] == ["y.txt"]
    assert output(cds.submit_compute_unit(shell("ls *.txt", input_data=[data]))).split() == [
        "more.txt",
        "stderr.txt",
        "stdout.txt",
        "y.txt",
    ]
    assert store.get_details()["used_nbytes"] == data.nbytes == 5


def test_an_empty_data_unit_waits_for_files_until_it_is_sealed(
    cds: ComputeDataService, store: PilotData, tmp_path: Path
) -> None:
    filled, sealed = store.create_du(), store.create_du()
    units = [cds.submit_compute_unit(shell("ls", input_data=[data])) for data in (filled, sealed)]
    with pytest.raises(PilotTimeoutError, match=r"seal\(\)"):
        units[1].wait(0.3)
    assert [unit.state for unit in units] == ["Pending", "Pending"]
    sealed.seal()
    assert output(units[1]).split() == ["stderr.txt", "stdout.txt"]
    filled.add_files([write(tmp_path / "in.txt")])
    assert "in.txt" in output(units[0]).split()


def test_the_size_of_a_store_is_enforced(cds: ComputeDataService, pds: PilotDataService, tmp_path: Path) -> None:
    small = new_store(pds, tmp_path / "small", size="1 kB", datacenter="eu", machine="m1")
    big = write(tmp_path / "big", "x" * 1001)
    with pytest.raises(StoreFullError, match="1,000"):
        small.submit_data_unit({"file_urls": [big]})
    data = new_data(small, tmp_path, content="x" * 600)
    with pytest.raises(StoreFullError, match="400 are free"):
        data.add_files([write(tmp_path / "b", "x" * 401)])
    # What failed has left nothing behind, on the disk or in the account.
    with pytest.raises(DataError, match="already"):
        data.add_files([write(tmp_path / "c" / "in.txt", "x" * 300)])
    data.add_files([write(tmp_path / "d", "x" * 300)])
    unit = cds.submit_compute_unit(shell("head -c 101 /dev/zero > out", output_data=[{"out": "out"}]))
    error = error_of(unit)
    assert isinstance(error, StagingError)
    assert "100" in str(error)
    fits = cds.submit_compute_unit(shell("head -c 100 /dev/zero > out", output_data=[{"out": "out"}]))
    assert fits.wait(LONG_S) == "Done", fits.exception()
    assert small.get_details()["used_nbytes"] == 1000
    small.remove_du(data, force=True)
    assert small.get_details()["used_nbytes"] == 100
    assert new_data(small, tmp_path, content="x" * 900).nbytes == 900
    assert sum(path.stat().st_size for path in (tmp_path / "small").rglob("[!.]*") if path.is_file()) == 1000


def test_a_replica_that_cannot_be_made(pds: PilotDataService, store: PilotData, tmp_path: Path) -> None:
    data = new_data(store, tmp_path)
    other = new_store(pds, tmp_path / "other")
    marker = tmp_path / "other" / ".dpilot-store.json"
    content = marker.read_text()
    marker.unlink()
    with pytest.raises(DataError, match="marker"):
        other.put_du(data)
    assert data.get_state() == "Running"
    assert [pd.id for pd in data.list_pilot_data()] == [store.id]
    marker.write_text(content)
    other.put_du(data)
    assert [pd.id for pd in data.list_pilot_data()] == [store.id, other.id]
    with pytest.raises(PilotTimeoutError, match=data.id):
        data.wait_replicas(3, 0.1)


def test_one_of_two_replicas_cannot_be_made(
    cds: ComputeDataService, pds: PilotDataService, store: PilotData, tmp_path: Path
) -> None:
    other = new_store(pds, tmp_path / "other")
    (tmp_path / "other" / ".dpilot-store.json").unlink()
    data = cds.submit_data_unit({"file_urls": [write(tmp_path / "a.txt", "a")], "number_of_replicas": 2})
    assert data.wait(LONG_S) == "Running"
    with pytest.raises(DataError, match="marker"):
        data.wait_replicas(2, LONG_S)
    assert other.wait(LONG_S) == "Running"
    assert [pd.id for pd in data.list_pilot_data()] == [store.id]


# ---------------------------------------------------------------- programs


def test_names_in_arguments_are_expanded_without_a_shell(cds: ComputeDataService, tmp_path: Path) -> None:
    unit = cds.submit_compute_unit(
        {
            "executable": "$TOOLS/echo",
            "arguments": ["$A|${A}b|$UNKNOWN_NAME|$$|\\$A", "$A $B; *", "$DPILOT_UNIT"],
            "environment": {"A": 1, "B": "two words", "TOOLS": "/bin"},
        }
    )
    assert output(unit) == f"1|1b|$UNKNOWN_NAME|$$|$A 1 two words; * {unit.id}\n"


def test_input_output_and_error_files(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    data = new_data(store, tmp_path, content="b\na\n")
    unit = cds.submit_compute_unit(
        shell("sort; echo problem >&2", input="in.txt", output="logs/out.log", error="logs/err.log", input_data=[data])
    )
    assert unit.wait(LONG_S) == "Done"
    assert (sandbox_of(unit) / "logs/out.log").read_text() == "a\nb\n"
    assert (sandbox_of(unit) / "logs/err.log").read_text() == "problem\n"
    absolute = cds.submit_compute_unit({"executable": "/bin/cat", "input": write(tmp_path / "in", "from elsewhere")})
    assert output(absolute) == "from elsewhere"
    assert output(cds.submit_compute_unit({"executable": "/bin/cat"})) == ""  # not the terminal
    missing = error_of(cds.submit_compute_unit({"executable": "/bin/cat", "input": "missing.txt"}))
    assert isinstance(missing, ExecutableError)
    assert "missing.txt" in str(missing)


def test_exit_status_and_the_end_of_stderr(cds: ComputeDataService) -> None:
    unit = cds.submit_compute_unit(shell("for n in $(seq 100); do echo line $n >&2; done; exit 7"))
    error = error_of(unit)
    assert isinstance(error, ExecutableError)
    assert error.exit_code == 7
    assert error.stderr.splitlines() == [f"line {n}" for n in range(81, 101)]
    assert "exit status 7" in str(error)
    with pytest.raises(ExecutableError, match="line 100"):
        unit.result()
    killed = error_of(cds.submit_compute_unit(shell("kill -9 $$")))
    assert isinstance(killed, ExecutableError)
    assert killed.exit_code == -9
    assert "SIGKILL" in str(killed)


def test_programs_that_cannot_be_started(cds: ComputeDataService, tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.sh", "#!/bin/sh\n")
    no_interpreter = write(tmp_path / "odd.sh", "#!/no/such/interpreter\n")
    Path(no_interpreter).chmod(0o755)
    for executable, said in [
        ("no-such-program", "was not found on the PATH"),
        (tmp_path / "absent", "does not exist"),
        (plain, "chmod"),
        (tmp_path, "is not executable"),
        (no_interpreter, "could not be started"),
    ]:
        error = error_of(cds.submit_compute_unit({"executable": executable}))
        assert isinstance(error, ExecutableError)
        assert str(executable) in str(error)
        assert said in str(error)
        assert error.exit_code is None


def test_a_staged_program(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    data = new_data(store, tmp_path, "tool.sh", "echo staged $1\n")
    unit = cds.submit_compute_unit({"executable": "sh", "arguments": ["./tool.sh", "x"], "input_data": [data]})
    assert output(unit) == "staged x\n"


def test_a_working_directory_that_cannot_be_written(cds: ComputeDataService, tmp_path: Path) -> None:
    below_a_file = Path(write(tmp_path / "file")) / "below"
    unit = cds.submit_compute_unit({"executable": "/bin/true", "working_directory": below_a_file})
    error = error_of(unit)
    assert isinstance(error, UnitError)
    assert str(below_a_file) in str(error)
    assert "working_directory" in str(error)


def test_a_working_directory_of_the_users_choice(cds: ComputeDataService, tmp_path: Path) -> None:
    directory = tmp_path / "mine"
    write(directory / "kept.txt", "kept")
    unit = cds.submit_compute_unit(shell("pwd; cat kept.txt", working_directory=directory))
    assert output(unit) == f"{directory}\nkept"
    assert unit.get_local_working_directory() == str(directory)
    assert ComputeUnit(unit.get_url()).get_local_working_directory() == str(directory)
    assert unit.get_details()["sandbox"] == str(directory)


def test_retries(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    """Fails the first time, works the second: and leaves no trace of the first."""
    data = new_data(store, tmp_path)
    marker = tmp_path / "tried"
    script = f"cat in.txt > $DPILOT_UNIT.txt; if [ ! -e {marker} ]; then touch {marker} left-over; exit 1; fi; ls"
    unit = cds.submit_compute_unit(shell(script, input_data=[data], output_data=[{"out": "cu-*.txt"}], retries=1))
    states: list[State] = []
    unit.set_callback(lambda _unit, _member, state: states.append(state))
    reader = cds.submit_compute_unit(shell("cat cu-*.txt", input_data=[unit.output_data["out"]]))
    assert "left-over" not in output(unit)
    assert output(reader) == "input\n"
    assert unit.get_details()["attempt"] == 2
    assert unit.get_details()["bytes"]["local"] == len("input\n")
    assert [state for state, _ in unit.history].count(State.Pending) == 2

    def fails(path: Path) -> None:
        with path.open("a") as file:
            file.write("x")
        raise ValueError("again")

    call = cds.submit(fails, tmp_path / "calls", retries=2)
    assert isinstance(error_of(call), ValueError)
    assert (tmp_path / "calls").read_text() == "xxx"


def test_walltime(cds: ComputeDataService) -> None:
    unit = cds.submit_compute_unit({"executable": "/bin/sleep", "arguments": [60], "walltime": 0.005})
    error = error_of(unit)
    assert isinstance(error, ExecutableError)
    assert "walltime of 0.3 s" in str(error)


# ---------------------------------------------------------------- waiting


def test_what_a_wait_that_runs_out_says(
    cds: ComputeDataService, store: PilotData, pilot: PilotCompute, tmp_path: Path
) -> None:
    blockers = cds.submit_compute_unit_batch(
        {"executable": "/bin/sleep", "arguments": [60], "name": "blocker", "output_data": [{"late": "*"}]}
        for _ in range(2)
    )
    queued = cds.submit_compute_unit({"executable": "/bin/true"})
    with pytest.raises(PilotTimeoutError, match=f"{queued.id}.*is Pending.*waits for a slot of {pilot.id}"):
        queued.wait(0)
    reader = cds.submit_compute_unit({"executable": "/bin/true", "input_data": [blockers[0].output_data["late"]]})
    with pytest.raises(PilotTimeoutError, match=f"{reader.id}.*waits for its input.*written by {blockers[0].id}"):
        reader.wait(0)
    caller = cds.submit(print, queued)
    with pytest.raises(PilotTimeoutError, match="waits for the results"):
        caller.result(0.05)
    with pytest.raises(PilotTimeoutError, match=r"still pending after 0\.2 s: .*\(blocker\) is Running"):
        cds.wait(0.2)
    with pytest.raises(PilotTimeoutError, match=r"late|Pending"):
        blockers[0].output_data["late"].wait(0)
    with pytest.raises(TimeoutError):
        blockers[0].exception(0.05)
    assert set(cds.why_waiting()) == {queued.id, reader.id, caller.id}
    direct = pilot.submit_compute_unit({"executable": "/bin/true"})
    with pytest.raises(PilotTimeoutError, match=direct.id):
        pilot.wait(0.05)
    cds.cancel()
    assert {unit.state for unit in [*blockers, queued, reader, caller]} <= {State.Canceled, State.Failed}
    assert direct.wait(LONG_S) == "Done"


def test_a_unit_is_canceled_right_after_it_was_submitted(cds: ComputeDataService) -> None:
    unit = cds.submit_compute_unit({"executable": "/bin/sleep", "arguments": [5]})
    began = time.monotonic()
    unit.cancel()
    assert unit.state == "Canceled"
    assert time.monotonic() - began < 4
    with pytest.raises(UnitCanceledError):
        unit.result()
    assert unit.exception() is None
    explained = cds.submit(lambda: 1)
    assert explained.explain().unit == explained.id
    assert cds.submit(lambda: 1).get_details()["kind"] == "<lambda>"


def test_a_no_op_is_waited_for_without_delay(cds: ComputeDataService) -> None:
    cds.submit(lambda: None).wait(LONG_S)
    times = []
    for _ in range(20):
        unit = cds.submit(lambda: None)
        unit.wait(LONG_S)
        times.append(time.time() - unit.history[-1].timestamp)
    assert sorted(times)[10] < 0.05


async def test_await(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    slow = cds.submit_compute_unit({"executable": "/bin/sleep", "arguments": [0.3]})
    failing = cds.submit_compute_unit({"executable": "/bin/false"})
    data = cds.submit_data_unit({"file_urls": [write(tmp_path / "a")]})
    states = await asyncio.wait_for(asyncio.gather(slow, failing, data), LONG_S)  # type: ignore[call-overload]
    assert states == ["Done", "Failed", "Running"]
    assert ticks > 10  # the loop went on meanwhile
    assert await slow == "Done"  # what has ended may be awaited, too
    endless = cds.submit_compute_unit({"executable": "/bin/sleep", "arguments": [60]})

    async def wait() -> State:
        return await endless

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wait(), 0.1)
    endless.cancel()
    assert await endless == "Canceled"
    ticking.cancel()


def test_handles_made_while_units_end(cds: ComputeDataService, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever arrives first, the answer with what is known or the news: no end is missed."""
    for n in range(60):
        unit = cds.submit(time.sleep, n % 6 * 0.001)
        unit.get_details()  # it has reached the scheduler
        assert ComputeUnit(unit.get_url()).wait(LONG_S) == "Done"
    assert caplog.records == []


# ---------------------------------------------------------------- history and callbacks


def test_history_and_callbacks_agree(cds: ComputeDataService, store: PilotData, tmp_path: Path) -> None:
    data = new_data(store, tmp_path)
    told: list[tuple[str, State]] = []
    last = threading.Event()

    def note(unit: ComputeUnit, member: str, state: State) -> None:
        told.append((unit.id, state))
        assert unit.state in (state, State.Done, State.Running, State.Staging)
        if state is State.Done and len([s for _, s in told if s is State.Done]) == 5:
            last.set()

    began = time.time()
    units = cds.submit_compute_unit_batch(
        shell("sleep 0.1", input_data=[data], output_data=[{"out": "std*"}]) for _ in range(5)
    )
    for unit in units:
        unit.set_callback("state", note)
    assert last.wait(LONG_S)
    for unit in units:
        states = [state for state, _ in unit.history]
        assert states == ["New", "Pending", "Staging", "Running", "Staging", "Done"]
        assert [state for id, state in told if id == unit.id] == states[2:]
        times = [timestamp for _, timestamp in unit.history]
        assert times == sorted(times)
        assert began - 1 <= times[0]
        assert times[-1] <= time.time()
        assert unit.get_details()["history"] == unit.history
    running = units[0].history[3].timestamp
    assert 0.1 <= units[0].history[4].timestamp - running < 5


def test_a_callback_that_raises_is_logged_and_harms_nothing(
    cds: ComputeDataService, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[State] = []
    over = threading.Event()

    def bad(*_: Any) -> None:
        raise RuntimeError("a bug of the user's")

    def good(_unit: ComputeUnit, _member: str, state: State) -> None:
        told.append(state)
        if state.is_final:
            over.set()

    with caplog.at_level(logging.ERROR, logger="dpilot"):
        unit = cds.submit_compute_unit({"executable": "/bin/sleep", "arguments": [0.1]})
        unit.set_callback("state", bad)
        unit.set_callback("state", good)
        assert unit.wait(LONG_S) == "Done"
        assert over.wait(LONG_S)
    assert told == [State.Running, State.Done]
    logged = [record for record in caplog.records if record.name.startswith("dpilot")]
    assert len(logged) == 2
    assert all("a bug of the user's" in str(record.exc_info) for record in logged)
    with pytest.raises(StateError, match="cannot be called"):
        unit.set_callback("state", 3)  # type: ignore[arg-type]
    with pytest.raises(StateError, match="'state'"):
        unit.set_callback("progress", good)


def test_a_callback_that_is_unset_is_not_called(cds: ComputeDataService) -> None:
    told: list[str] = []
    unit = cds.submit_compute_unit({"executable": "/bin/sleep", "arguments": [0.2]})
    unit.set_callback("state", lambda *_: told.append("first"))
    unit.unset_callback("state")
    over = threading.Event()
    unit.set_callback(lambda *_: over.set())
    unit.wait(LONG_S)
    assert over.wait(LONG_S)
    assert told == []


def test_a_callback_may_use_the_service(cds: ComputeDataService) -> None:
    """Also to wait: callbacks have a thread of their own."""
    results: list[Any] = []
    over = threading.Event()

    def follow(unit: ComputeUnit, _member: str, state: State) -> None:
        if state is State.Done:
            results.append(cds.submit(lambda x: x + 1, unit).result(LONG_S))
            over.set()

    unit = cds.submit(lambda: time.sleep(0.1) or 1)
    unit.set_callback("state", follow)
    assert over.wait(LONG_S)
    assert results == [2]


# ---------------------------------------------------------------- Ctrl-C


def test_ctrl_c_ends_the_wait_and_nothing_else(tmp_path: Path) -> None:
    script = """
    import signal
    from pathlib import Path
    from dpilot import ComputeDataService, PilotComputeService

    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background is started without one
    with PilotComputeService() as pcs, ComputeDataService() as cds:
        pcs.create_pilot({"service_url": "fork://localhost", "number_of_processes": 2, "working_directory": "work"})
        cds.add_pilot_compute_service(pcs)
        script = "while [ ! -e go ]; do sleep 0.05; done; cat go"
        slow = cds.submit_compute_unit({"executable": "/bin/sh", "arguments": ["-c", script]})
        for wait in (slow.wait, cds.wait, slow.result):
            try:
                print("waiting", flush=True)
                wait()
            except KeyboardInterrupt:
                print("interrupted", slow.get_state(), cds.submit(lambda: 6 * 7).result(30), flush=True)
        print("waiting", flush=True)
        print(cds.wait(30), slow.get_state(), Path(slow.get_local_working_directory(), "stdout.txt").read_text())
    """
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", dedent(script)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(3):
            assert process.stdout.readline() == "waiting\n"
            time.sleep(0.3)  # until it waits; an interruption earlier would only be caught earlier
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline().split()[0::2] == ["interrupted", "42"]
        assert process.stdout.readline() == "waiting\n"
        sandbox = next((tmp_path / "work").glob("cu-*"))
        (sandbox / "go").write_text("went on\n")
        assert process.stdout.read() == "Running Done went on\n\n"
        assert process.stderr.read() == ""
        assert process.wait(LONG_S) == 0
