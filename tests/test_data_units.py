"""Data units: who moves their bytes, how many replicas there are, and what becomes of those that are damaged."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from distributed import Client

from dpilot import (
    ComputeDataService,
    DataError,
    DataUnit,
    PilotCompute,
    PilotComputeService,
    PilotData,
    PilotDataService,
    StateError,
    StoreFullError,
)
from tests.helpers import LONG_S, Gate, eventually, reach, start
from tests.services import S3
from tests.units import hold_and_read, read_one

pytestmark = pytest.mark.cluster

NewStore = Callable[..., PilotData]


@pytest.fixture
def new_store(pds: PilotDataService, tmp_path: Path) -> NewStore:
    """Makes stores in directories of this machine."""

    def make(name: str, **labels: Any) -> PilotData:
        return pds.create_pilot({"service_url": f"file://{tmp_path / name}", **labels})

    return make


def write(path: Path, content: str | bytes = "content\n") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def put(store: PilotData, tmp_path: Path, *names: str) -> DataUnit:
    """A new data unit of small files, ready."""
    unit = store.submit_data_unit({"file_urls": [write(tmp_path / "source" / name) for name in names or ("a.txt",)]})
    assert unit.wait(LONG_S) == "Running", unit.exception()
    return unit


def rows(cds: ComputeDataService, unit: DataUnit, kind: str) -> list[dict[str, Any]]:
    """The transfers of a data unit that have ended."""
    return [row for row in cds.transfers() if row["du"] == unit.id and row["kind"] == kind]


class Slow:
    """A web server that sends one file as fast as it is let: piece by piece, once it is `open`."""

    PIECE = b"x" * 65536
    PIECES = 64

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.asked = threading.Semaphore(0)
        slow = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(slow.PIECE) * slow.PIECES))
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                try:
                    self.wfile.write(slow.PIECE)
                    slow.asked.release()
                    slow.is_open.wait()
                    for _ in range(slow.PIECES - 1):
                        self.wfile.write(slow.PIECE)
                except OSError:
                    pass  # whoever asked has been killed

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/slow.bin"
        threading.Thread(target=self.server.serve_forever).start()

    def close(self) -> None:
        self.is_open.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def slow() -> Iterator[Slow]:
    server = Slow()
    try:
        yield server
    finally:
        server.close()


def workers_of(pilot: PilotCompute) -> dict[str, int]:
    """The pilot's workers: pid by address."""
    client = pilot._session.client
    infos = client.scheduler_info(n_workers=-1)["workers"]
    pids = client.run(os.getpid)
    return {address: pids[address] for address, info in infos.items() if f"pilot:{pilot.id}" in info["resources"]}


# ------------------------------------------------------------------ who moves the bytes


def test_what_only_the_client_sees_the_client_uploads(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, tmp_path: Path
) -> None:
    unit = put(new_store("a"), tmp_path)
    (row,) = rows(cds, unit, "upload")
    assert row["mover"] == unit._session.client.id
    assert (row["moved"], row["nbytes"], row["error"]) == (8, 8, None)


def test_replicas_are_made_by_workers(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, tmp_path: Path
) -> None:
    reach(pilot, "Running")
    first, second = new_store("a"), new_store("b")
    unit = put(first, tmp_path, "a.txt", "b.txt")
    second.put_du(unit)
    (row,) = rows(cds, unit, "copy")
    assert row["mover"] in workers_of(pilot)
    assert (row["source"], row["target"], row["moved"]) == (first.id, second.id, 16)
    assert row["submitted"] <= row["began"] <= row["ended"]
    assert row["predicted_s"] > 0


def test_without_workers_a_client_makes_the_replica(
    cds: ComputeDataService, new_store: NewStore, tmp_path: Path
) -> None:
    unit = put(new_store("a"), tmp_path)
    new_store("b").put_du(unit)
    (row,) = rows(cds, unit, "copy")
    assert row["mover"] == unit._session.client.id


@pytest.mark.s3
def test_sources_that_everybody_reaches_are_brought_by_a_worker(
    cds: ComputeDataService, pds: PilotDataService, pilot: PilotCompute, new_store: NewStore, s3: S3, tmp_path: Path
) -> None:
    reach(pilot, "Running")
    place = s3.place()
    far = pds.create_pilot({"service_url": f"s3://{place}/far", "storage_options": s3.storage_options})
    away = put(far, tmp_path, "a.txt", "b.txt")
    near = new_store("near")
    unit = near.submit_data_unit(
        {"file_urls": [f"s3://{place}/far/{away.id}/*.txt"], "storage_options": s3.storage_options}
    )
    assert unit.wait(LONG_S) == "Running", unit.exception()
    (row,) = rows(cds, unit, "fetch")
    assert row["mover"] in workers_of(pilot)
    assert rows(cds, unit, "upload") == []
    assert unit.list_files() == ["a.txt", "b.txt"]


@pytest.mark.s3
@pytest.mark.parametrize("pilot_is_first", [True, False])
def test_workers_are_connected_before_a_file_is_needed(
    pcs: PilotComputeService, pds: PilotDataService, s3: S3, tmp_path: Path, pilot_is_first: bool
) -> None:
    def connected() -> int:
        from dpilot.data import bucket

        return sum(found is not None for found in bucket._buckets.values())

    if pilot_is_first:
        start(pcs, tmp_path)
    store = pds.create_pilot({"service_url": f"s3://{s3.place()}/far", "storage_options": s3.storage_options})
    if not pilot_is_first:
        start(pcs, tmp_path)
    with Client(store._session.client.scheduler.address, set_as_default=False) as client:
        eventually(lambda: list(client.run(connected).values()) == [1], "the worker to connect")


def test_own_files_and_others_in_one_data_unit(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, slow: Slow, tmp_path: Path
) -> None:
    slow.is_open.set()
    reach(pilot, "Running")
    unit = new_store("a").submit_data_unit({"file_urls": [write(tmp_path / "own.txt"), slow.url]})
    reader = cds.submit_compute_unit({"executable": "/bin/ls", "input_data": [unit]})
    assert reader.wait(LONG_S) == "Done", reader.exception()
    names = Path(reader.get_local_working_directory(), "stdout.txt").read_text().split()
    assert {"own.txt", "slow.bin"} <= set(names)
    (upload,), (fetch,) = rows(cds, unit, "upload"), rows(cds, unit, "fetch")
    assert upload["mover"] == unit._session.client.id
    assert fetch["mover"] in workers_of(pilot)


# ------------------------------------------------------------------ interrupted


def test_a_worker_that_dies_in_a_transfer(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, slow: Slow, tmp_path: Path
) -> None:
    reach(pilot, "Running")
    eventually(lambda: len(workers_of(pilot)) == 2, "two workers")
    store = new_store("a")
    unit = store.submit_data_unit({"file_urls": [slow.url]})
    assert slow.asked.acquire(timeout=LONG_S)
    (row,) = rows(cds, unit, "fetch")
    os.kill(workers_of(pilot)[row["mover"]], signal.SIGKILL)
    assert slow.asked.acquire(timeout=LONG_S)  # another one has begun
    assert store.list_data_units() == []
    slow.is_open.set()
    assert unit.wait(LONG_S) == "Running", unit.exception()
    assert unit.nbytes == len(slow.PIECE) * slow.PIECES
    assert unit.verify(timeout=LONG_S) == {store.id: []}
    # Nothing of the first attempt is left.
    assert sorted(path.name for path in (tmp_path / "a" / unit.id).iterdir()) == [".dpilot-manifest.json", "slow.bin"]


def test_a_worker_that_is_lost_and_works_on_in_the_same_place(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, slow: Slow, tmp_path: Path
) -> None:
    """It removes what was there when it begins: the next one's, if that was sooner."""
    reach(pilot, "Running")
    unit = new_store("a").submit_data_unit({"file_urls": [slow.url]})
    assert slow.asked.acquire(timeout=LONG_S)
    (row,) = rows(cds, unit, "fetch")
    os.kill(workers_of(pilot)[row["mover"]], signal.SIGKILL)
    assert slow.asked.acquire(timeout=LONG_S)
    eventually(lambda: len(list((tmp_path / "a" / unit.id).glob(".dpilot-tmp-*"))) == 1, "the next one has begun")
    shutil.rmtree(tmp_path / "a" / unit.id)
    slow.is_open.set()
    assert unit.wait(LONG_S) == "Running", unit.exception()
    assert unit.verify(timeout=LONG_S) == {on: [] for on in unit.get_details()["replicas"]}


def test_cancel_in_a_transfer(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, slow: Slow, tmp_path: Path
) -> None:
    reach(pilot, "Running")
    store = new_store("a", size="1 GB")
    unit = store.submit_data_unit({"file_urls": [slow.url]})
    assert slow.asked.acquire(timeout=LONG_S)
    unit.cancel()
    assert unit.wait(LONG_S) == "Canceled"
    slow.is_open.set()
    eventually(lambda: not (tmp_path / "a" / unit.id).exists(), "what was copied is removed")
    assert store.list_data_units() == []
    assert store.get_details()["used_nbytes"] == 0
    whole = put(store, tmp_path)  # what was set aside is free again
    assert whole.nbytes == 8


def test_progress(cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, slow: Slow) -> None:
    reach(pilot, "Running")
    unit = new_store("a").submit_data_unit({"file_urls": [slow.url]})
    assert slow.asked.acquire(timeout=LONG_S)
    total = len(slow.PIECE) * slow.PIECES
    eventually(lambda: unit.progress.total_nbytes == total, "it is known how much is to come")
    assert 0 <= unit.progress.nbytes < total
    slow.is_open.set()
    unit.wait(LONG_S)
    eventually(lambda: unit.progress == (0, 0, 0.0, 0.0), "nothing moves")


def test_a_client_that_is_killed_after_it_has_submitted(pds: PilotDataService, slow: Slow, tmp_path: Path) -> None:
    script = f"""
        from dpilot import PilotDataService
        store = PilotDataService().create_pilot({{"service_url": "file://{tmp_path}/a"}})
        unit = store.submit_data_unit({{"file_urls": ["{slow.url}"]}})
        print(unit.id, flush=True)
        unit.wait()
    """
    with subprocess.Popen([sys.executable, "-c", dedent(script)], stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        id = client.stdout.readline().strip()
        assert slow.asked.acquire(timeout=LONG_S)
        client.kill()
    assert (tmp_path / "a" / id).exists()  # what it left
    again = pds.create_pilot({"service_url": f"file://{tmp_path}/a"})
    assert again.list_data_units() == []
    assert put(again, tmp_path).wait(LONG_S) == "Running"


# ------------------------------------------------------------------ replicas


def test_replicas_are_spread_over_datacenters(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, tmp_path: Path
) -> None:
    for name, site in (("a", "eu"), ("b", "eu"), ("c", "us")):
        new_store(name, affinity_datacenter_label=site)
    unit = cds.submit_data_unit({"file_urls": [write(tmp_path / "x.txt")], "number_of_replicas": 2})
    unit.wait_replicas(2, LONG_S)
    assert {store.get_details()["affinity_datacenter_label"] for store in unit.list_pilot_data()} == {"eu", "us"}
    assert [len(rows(cds, unit, kind)) for kind in ("upload", "copy")] == [1, 1]


def test_a_store_that_fails_is_replaced_by_another(
    cds: ComputeDataService, new_store: NewStore, tmp_path: Path
) -> None:
    stores = [new_store("a"), new_store("b")]
    broken, whole = sorted(stores, key=lambda store: store.id)
    Path(broken.service_url.removeprefix("file://"), ".dpilot-store.json").unlink()
    unit = cds.submit_data_unit({"file_urls": [write(tmp_path / "x.txt")], "number_of_replicas": 2})
    assert unit.wait(LONG_S) == "Running"
    assert [store.id for store in unit.list_pilot_data()] == [whole.id]
    eventually(lambda: unit.exception() is not None, "the failure is told")
    assert broken.service_url in str(unit.exception())


def test_move(cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, tmp_path: Path) -> None:
    first, second = new_store("a"), new_store("b")
    unit = put(first, tmp_path)
    unit.move(first, second)
    assert [store.id for store in unit.list_pilot_data()] == [second.id]
    assert not (tmp_path / "a" / unit.id).exists()
    with pytest.raises(DataError, match="no replica"):
        unit.move(first, second)


def test_outputs_go_where_their_labels_say(cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore) -> None:
    for site in ("eu", "us"):
        new_store(site, affinity_datacenter_label=site)
    for site in ("eu", "us"):
        result = cds.submit_data_unit({"affinity_datacenter_label": site})
        unit = cds.submit_compute_unit({"executable": "/bin/date", "output_data": [{result: "stdout.txt"}]})
        assert unit.wait(LONG_S) == "Done", unit.exception()
        (store,) = result.list_pilot_data()
        assert store.get_details()["affinity_datacenter_label"] == site


def test_delete(cds: ComputeDataService, new_store: NewStore, tmp_path: Path) -> None:
    unit = put(new_store("a"), tmp_path)
    new_store("b").put_du(unit)
    unit.delete()
    assert unit.wait(LONG_S) == "Canceled"
    assert list(tmp_path.glob(f"*/{unit.id}")) == []


def test_the_last_replica_stays_unless_one_insists(new_store: NewStore, tmp_path: Path) -> None:
    store = new_store("a")
    unit = put(store, tmp_path)
    with pytest.raises(DataError, match="force=True"):
        store.remove_du(unit)
    assert unit.list_files() == ["a.txt"]
    store.remove_du(unit, force=True)
    assert unit.wait(LONG_S) == "Canceled"
    assert not (tmp_path / "a" / unit.id).exists()


def test_files_that_a_unit_reads_are_deleted_when_it_has_ended(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, tmp_path: Path
) -> None:
    store = new_store("a")
    unit = put(store, tmp_path)
    gate = Gate(tmp_path / "gate")
    reader = cds.submit(hold_and_read, gate.path, unit, name=gate.name)
    reach(reader, "Running")
    store.remove_du(unit, force=True)
    assert store.list_data_units() == []
    gate.open()
    assert reader.result(LONG_S) == "content\n"
    eventually(lambda: not (tmp_path / "a" / unit.id).exists(), "the files are deleted")


def test_files_are_added_to_every_replica(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, tmp_path: Path
) -> None:
    unit = put(new_store("a"), tmp_path)
    second = new_store("b")
    second.put_du(unit)
    before = (tmp_path / "b" / unit.id / "a.txt").stat()
    unit.add_files([write(tmp_path / "more" / "b.txt")])
    assert unit.list_files() == ["a.txt", "b.txt"]
    assert (tmp_path / "b" / unit.id / "a.txt").stat().st_ino == before.st_ino  # what was there is not copied again
    assert len(unit.list_pilot_data()) == 2
    assert set(map(tuple, unit.verify(timeout=LONG_S).values())) == {()}
    with pytest.raises(DataError, match=r"a\.txt"):
        unit.add_files([write(tmp_path / "more" / "a.txt")])
    unit.seal()
    with pytest.raises(StateError, match="sealed"):
        unit.add_files([write(tmp_path / "more" / "c.txt")])
    with pytest.raises(StateError, match="sealed"):
        unit.remove_files(["a.txt"])
    assert unit.list_files() == ["a.txt", "b.txt"]


def test_outputs_get_the_replicas_that_they_should_have(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore
) -> None:
    new_store("a", affinity_datacenter_label="eu")
    new_store("b", affinity_datacenter_label="us")
    result = cds.submit_data_unit({"number_of_replicas": 2})
    for n in range(2):
        script = f"echo {n} > {n}.txt"
        unit = cds.submit_compute_unit(
            {"executable": "/bin/sh", "arguments": ["-c", script], "output_data": [{result: "[0-9].txt"}]}
        )
        assert unit.wait(LONG_S) == "Done", unit.exception()
        result.wait_replicas(2, LONG_S)
        eventually(lambda: not result._coming, "nothing is on its way")
        assert result.list_files() == [f"{i}.txt" for i in range(n + 1)]
        checked = result.verify(timeout=LONG_S)
        assert len(checked) == 2
        assert set(map(tuple, checked.values())) == {()}


def test_stores_are_never_over_filled(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, tmp_path: Path
) -> None:
    small, large = new_store("small", size="1 kB"), new_store("large")
    units = [large.submit_data_unit({"file_urls": [write(tmp_path / f"{n}.bin", b"x" * 300)]}) for n in range(8)]
    fitted: list[DataUnit] = []
    refusals: list[str] = []

    def copy(unit: DataUnit) -> None:
        unit.wait(LONG_S)
        try:
            small.put_du(unit)
            fitted.append(unit)
        except StoreFullError as error:
            refusals.append(str(error))

    threads = [threading.Thread(target=copy, args=(unit,)) for unit in units]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fitted) == 3
    assert len(refusals) == 5
    assert all("100 are free" in refusal for refusal in refusals[-1:])
    assert small.get_details()["used_nbytes"] == 900
    assert sum(path.stat().st_size for path in (tmp_path / "small").rglob("*.bin")) == 900


# ------------------------------------------------------------------ damaged


def damage(directory: Path, unit: DataUnit, name: str = "a.txt") -> None:
    path = directory / unit.id / name
    path.chmod(0o644)
    path.write_text("CONTENT\n")


def test_verify_finds_and_repairs(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, tmp_path: Path
) -> None:
    first, second = new_store("a"), new_store("b")
    unit = put(first, tmp_path, "a.txt", "b.txt")
    second.put_du(unit)
    assert unit.verify(timeout=LONG_S) == {first.id: [], second.id: []}
    damage(tmp_path / "b", unit)
    (tmp_path / "b" / unit.id / "b.txt").unlink()
    found = unit.verify(repair=False, timeout=LONG_S)
    assert found[first.id] == []
    assert [name in " ".join(found[second.id]) for name in ("a.txt", "b.txt")] == [True, True]
    assert unit.verify(timeout=LONG_S)[second.id] == found[second.id]
    unit.wait_replicas(2, LONG_S)
    assert unit.verify(timeout=LONG_S) == {first.id: [], second.id: []}
    assert (tmp_path / "b" / unit.id / "a.txt").read_text() == "content\n"


def test_a_damaged_replica_is_not_copied_and_is_found_out(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, tmp_path: Path
) -> None:
    reach(pilot, "Running")
    first, second, third = new_store("a"), new_store("b"), new_store("c")
    unit = put(first, tmp_path)
    second.put_du(unit)
    damage(tmp_path / "a", unit)
    damage(tmp_path / "b", unit)
    with pytest.raises(DataError, match=r"a\.txt"):
        third.put_du(unit)
    assert not (tmp_path / "c" / unit.id).exists()
    (tmp_path / "b" / unit.id / "a.txt").write_text("content\n")
    third.put_du(unit)
    assert (tmp_path / "c" / unit.id / "a.txt").read_text() == "content\n"


def test_a_unit_reads_the_next_replica_when_one_is_lost(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, tmp_path: Path
) -> None:
    first, second = new_store("a"), new_store("b")
    unit = put(first, tmp_path)
    second.put_du(unit)
    lost = min(first, second, key=lambda store: store.id)
    directory = Path(lost.service_url.removeprefix("file://"))
    (directory / unit.id / "a.txt").unlink()
    reader = cds.submit_compute_unit({"executable": "/bin/cat", "arguments": ["a.txt"], "input_data": [unit]})
    assert reader.wait(LONG_S) == "Done", reader.exception()
    eventually(lambda: (directory / unit.id / "a.txt").exists(), "the replica is repaired")
    assert (directory / unit.id / "a.txt").read_text() == "content\n"


# ------------------------------------------------------------------ files that stay where they are


def test_files_are_registered_where_they_lie(
    cds: ComputeDataService, pilot: PilotCompute, new_store: NewStore, tmp_path: Path
) -> None:
    path = Path(write(tmp_path / "lab" / "a.txt"))
    data = cds.submit_data_unit({"file_urls": [f"{tmp_path}/lab/"], "register": True})
    assert data.wait(LONG_S) == "Running"
    assert data.list_pilot_data() == []
    assert data.list()["a.txt"]["local"] == str(path)
    reader = cds.submit(read_one, data)
    assert reader.result(LONG_S) == "content\n"
    assert rows(cds, data, "upload") == []
    store = new_store("b")
    store.put_du(data)  # a replica of its own, with checksums
    assert (tmp_path / "b" / data.id / "a.txt").read_text() == "content\n"
    assert [pd.id for pd in data.list_pilot_data()] == [store.id]
    with pytest.raises(DataError):
        data.add_files([write(tmp_path / "more.txt")])
    store.remove_du(data)
    assert path.read_text() == "content\n"


def test_a_registered_file_that_was_changed_is_not_served(
    cds: ComputeDataService, pilot: PilotCompute, tmp_path: Path
) -> None:
    path = Path(write(tmp_path / "a.txt"))
    data = cds.submit_data_unit({"file_urls": [path], "register": True, "checksums": True})
    assert data.verify(timeout=LONG_S) == {pd: [] for pd in data._on}
    path.write_text("CONTENT\n")
    ((problem,),) = data.verify(timeout=LONG_S).values()
    assert "register" in problem
    path.write_text("another size")
    reader = cds.submit(read_one, data)
    assert reader.wait(LONG_S) == "Failed"
    assert "register" in str(reader.exception())


@pytest.mark.s3
def test_objects_are_registered_where_they_lie(
    cds: ComputeDataService, pds: PilotDataService, pilot: PilotCompute, s3: S3, tmp_path: Path
) -> None:
    place = s3.place()
    far = pds.create_pilot({"service_url": f"s3://{place}/far", "storage_options": s3.storage_options})
    away = put(far, tmp_path)
    url = f"s3://{place}/far/{away.id}/a.txt"
    data = cds.submit_data_unit({"file_urls": [url], "storage_options": s3.storage_options, "register": True})
    assert cds.submit(read_one, data).result(LONG_S) == "content\n"
    assert list(data.list()) == ["a.txt"]


# ------------------------------------------------------------------ another session


def test_a_store_is_reopened_with_no_scheduler_left(
    cds: ComputeDataService, pds: PilotDataService, pilot: PilotCompute, tmp_path: Path
) -> None:
    script = f"""
        from dpilot import PilotDataService
        with PilotDataService() as pds:
            store = pds.create_pilot({{"service_url": "file://{tmp_path}/a"}})
            for name in ("a.txt", "b.txt"):
                unit = store.submit_data_unit({{"file_urls": ["{tmp_path}/source/" + name]}})
                unit.wait(30)
                print(unit.id)
    """
    for name in ("a.txt", "b.txt"):
        write(tmp_path / "source" / name, name)
    run = subprocess.run([sys.executable, "-c", dedent(script)], check=True, capture_output=True, text=True)
    ids = run.stdout.split()
    store = pds.create_pilot({"service_url": f"file://{tmp_path}/a", "size": "1 kB"})
    assert store.get_details()["used_nbytes"] == 10
    (tmp_path / "a" / "du-unfinished").mkdir()
    units = store.list_data_units()
    assert sorted(unit.id for unit in units) == sorted(ids)
    assert store.get_details()["used_nbytes"] == 10
    first = store.get_du(ids[0])
    assert first.get_state() == "Running"
    assert first.list_files() == ["a.txt"]
    reader = cds.submit_compute_unit({"executable": "/bin/cat", "arguments": ["a.txt"], "input_data": [first]})
    assert reader.wait(LONG_S) == "Done", reader.exception()
    assert Path(reader.get_local_working_directory(), "stdout.txt").read_text() == "a.txt"
    assert first.verify(timeout=LONG_S) == {store.id: []}
    assert time.time() > first.history[0].timestamp


def test_a_manifest_from_outside_that_is_no_manifest(pds: PilotDataService, tmp_path: Path) -> None:
    store = pds.create_pilot({"service_url": f"file://{tmp_path}/a"})
    unit = put(store, tmp_path)
    for name, text in (("du-bad", "{"), ("du-evil", '{"version": 1, "du": "du-evil", "files": [["../x", 1, null]]}')):
        write(tmp_path / "a" / name / ".dpilot-manifest.json", text)
    assert [unit.id for unit in store.list_data_units()] == [unit.id]
