"""Files of data units by their URLs: what reads files through fsspec reads them, wherever it runs."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any

import dask
import dask.dataframe as dd
import fsspec
import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest
import xarray as xr

from dpilot import (
    ComputeDataService,
    ConnectionLostError,
    DataError,
    DataUnit,
    DescriptionError,
    PilotCompute,
    PilotComputeService,
    PilotData,
    PilotDataService,
    StoreError,
)
from dpilot.errors import FileMissingError
from dpilot.filesystem import DataUnitFileSystem
from tests.helpers import LONG_S, script
from tests.netns import Network
from tests.services import S3
from tests.test_peer import Grid, ready, write

pytestmark = pytest.mark.cluster

ROWS = 1000


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def anywhere(request: pytest.FixtureRequest, pds: PilotDataService, tmp_path: Path) -> PilotData:
    """A store of either kind."""
    if request.param == "file":
        return pds.create_pilot({"service_url": f"file://{tmp_path / 'store'}"})
    s3: S3 = request.getfixturevalue("s3")
    return pds.create_pilot({"service_url": f"s3://{s3.bucket()}/x", "storage_options": s3.storage_options})


def put(store: PilotData, *sources: Path) -> DataUnit:
    return ready(store.submit_data_unit({"file_urls": [str(source) for source in sources]}))


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A directory with three tables in CSV, and the same in Parquet."""
    directory = tmp_path / "tables"
    (directory / "parquet").mkdir(parents=True)
    for n in range(3):
        table = pd.DataFrame({"n": np.arange(ROWS) + n * ROWS, "name": [f"row {i}" for i in range(ROWS)]})
        table.to_csv(directory / f"part {n}.csv", index=False)
        table.to_parquet(directory / "parquet" / f"{n}.parquet")
    return directory


def url_of(unit: DataUnit) -> str:
    return str(unit.get_url())


def total(url: str) -> int:
    return int(pd.read_csv(url)["n"].sum())


SUM = sum(range(3 * ROWS))


# -- looking


def test_listing(store: PilotData, tables: Path) -> None:
    unit = put(store, *tables.iterdir())
    url = url_of(unit)
    fs, path = fsspec.url_to_fs(url)
    assert isinstance(fs, DataUnitFileSystem)
    assert fs.unstrip_protocol(path) == url
    root = path.rpartition("/")[0]
    (row,) = [row for row in fs.ls(root) if row["name"] == path]
    assert (row["type"], row["nbytes"]) == ("directory", unit.nbytes)
    assert path in fs.ls(f"dpilot://{root}/", detail=False)
    names = [f"{path}/parquet", *(f"{path}/part {n}.csv" for n in range(3))]
    assert fs.ls(url, detail=False) == names
    assert [row["type"] for row in fs.ls(path)] == ["directory", "file", "file", "file"]
    info = fs.info(names[1])
    assert info["size"] == (tables / "part 0.csv").stat().st_size == fs.size(names[1])
    assert info["checksum"].startswith("xxh3:")
    assert info["du"] == unit.id
    assert fs.ls(names[1]) == [info]
    # As URLs of files are written, too.
    assert fs.info(f"{path}/part%200.csv")["checksum"] == info["checksum"]
    assert fs.glob(f"{url}/*.csv") == names[1:]
    assert fs.glob(f"{url}/**/*.parquet") == [f"{path}/parquet/{n}.parquet" for n in range(3)]
    assert fs.glob(f"{url}/part [01].csv") == names[1:3]
    assert fs.glob(f"{url}/none*") == []
    assert len(fs.find(path)) == 6
    assert fs.find(path, maxdepth=1) == names[1:]
    assert fs.find(names[1], detail=True) == {names[1]: info}
    assert [len(files) for _, _, files in fs.walk(path)] == [3, 3]
    assert fs.du(path) == unit.nbytes
    assert [fs.exists(p) for p in (path, names[0], names[1], f"{path}/x", f"{root}/du-0123456789ab")] == [
        *(True, True, True),
        *(False, False),
    ]
    assert [(fs.isdir(p), fs.isfile(p)) for p in names[:2]] == [(True, False), (False, True)]
    assert timedelta() <= datetime.now(UTC) - fs.created(names[1]) < timedelta(minutes=1)


def test_keys_change_with_the_content_only(pds: PilotDataService, store: PilotData, tmp_path: Path) -> None:
    one, two = put(store, Path(write(tmp_path / "a", 9))), put(store, Path(write(tmp_path / "a", 9)))
    fs, path = fsspec.url_to_fs(f"{url_of(one)}/a")
    key, number = fs.ukey(path), fs.checksum(path)
    pds.create_pilot({"service_url": f"file://{tmp_path / 'other'}"}).put_du(one)
    fs.invalidate_cache()
    assert (fs.ukey(path), fs.checksum(path)) == (key, number)
    assert fs.ukey(f"{url_of(two)}/a") != key


# -- reading


def test_a_notebook(anywhere: PilotData, tables: Path) -> None:
    unit = put(anywhere, *tables.iterdir())
    url = url_of(unit)
    assert sum(total(f"{url}/part {n}.csv") for n in range(3)) == SUM
    with fsspec.open(f"{url}/part 1.csv", "rt") as text:
        assert text.read() == (tables / "part 1.csv").read_text()
    fs, path = fsspec.url_to_fs(url)
    table = pyarrow.dataset.dataset(f"{path}/parquet", filesystem=fs, format="parquet").to_table()
    assert sum(table["n"].to_pylist()) == SUM
    content = (tables / "part 2.csv").read_bytes()
    file = f"{path}/part 2.csv"
    assert fs.cat_file(file) == content
    assert fs.cat_file(file, 10, 20) == content[10:20]
    assert fs.cat_file(file, -5) == content[-5:]
    assert fs.cat_file(file, 20, 10) == b""
    assert fs.cat_ranges([file, file, f"{path}/x"], [0, 100, 0], [5, 101, 1])[:2] == [content[:5], content[100:101]]
    with pytest.raises(FileMissingError):
        fs.cat_ranges([f"{path}/x"], 0, 1, on_error="raise")
    assert fs.cat([file])[file] == content


@pytest.mark.s3
def test_random_access_reads_what_is_asked_for(pds: PilotDataService, s3: S3, tmp_path: Path) -> None:
    store = pds.create_pilot({"service_url": f"s3://{s3.bucket()}/x", "storage_options": s3.storage_options})
    nbytes = 64 * 1024 * 1024
    content = Path(write(tmp_path / "big", nbytes)).read_bytes()
    unit = put(store, tmp_path / "big")
    fs, path = fsspec.url_to_fs(f"{url_of(unit)}/big")
    with fs.open(path, block_size=65536) as file:
        for position in (nbytes - 10, 5, nbytes // 2):
            file.seek(position)
            assert file.read(10) == content[position : position + 10]
        assert file.cache.total_requested_bytes < 1024 * 1024
        file = pickle.loads(pickle.dumps(file))
        assert file.tell() == nbytes // 2 + 10
        assert file.read(10) == content[nbytes // 2 + 10 : nbytes // 2 + 20]


def test_dask_reads_on_workers(
    anywhere: PilotData, pcs: PilotComputeService, pilot: PilotCompute, tables: Path
) -> None:
    url = url_of(put(anywhere, *tables.iterdir()))
    assert pilot.wait_running(LONG_S) == "Running"
    client = pcs.client
    csv = dd.read_csv(f"{url}/*.csv")
    assert csv.npartitions == 3
    assert client.compute(csv["n"].sum()).result(LONG_S) == SUM
    parquet = dd.read_parquet(f"{url}/parquet/*.parquet")
    assert client.compute(parquet["n"].sum()).result(LONG_S) == SUM
    lazy = dask.delayed(total)(f"{url}/part 0.csv")
    assert client.compute(lazy).result(LONG_S) == sum(range(ROWS))


def test_a_unit_reads_by_url(anywhere: PilotData, cds: ComputeDataService, pilot: PilotCompute, tables: Path) -> None:
    url = url_of(put(anywhere, *tables.iterdir()))
    units = [cds.submit(total, f"{url}/part {n}.csv") for n in range(3)]
    assert sum(unit.result(LONG_S) for unit in units) == SUM


def test_zarr(anywhere: PilotData, pcs: PilotComputeService, pilot: PilotCompute, tmp_path: Path) -> None:
    data = xr.Dataset({"t": (("x", "y"), np.arange(10_000.0).reshape(100, 100))}).chunk({"x": 25})
    data.to_zarr(tmp_path / "cube.zarr", zarr_format=3, consolidated=False)
    url = f"{url_of(put(anywhere, Path(f'{tmp_path}/cube.zarr')))}/cube.zarr"
    with xr.open_zarr(url, chunks=None, consolidated=False) as cube:
        assert float(cube["t"].sum()) == 49_995_000
    assert pilot.wait_running(LONG_S) == "Running"
    with xr.open_dataset(url, engine="zarr", chunks={}, consolidated=False) as cube:
        assert float(pcs.client.compute(cube["t"].sum()).result(LONG_S)) == 49_995_000


PLAIN = """
    import os, sys
    import fsspec, pandas as pd
    url = sys.argv[1]
    def total():
        files = [f"dpilot://{path}" for path in fsspec.filesystem("dpilot").glob(f"{url}/*.csv")]
        return sum(int(pd.read_csv(file)["n"].sum()) for file in files)
    print(f"{total()} ", end="", flush=True)
    pid = os.fork()
    print(f"{total()} ", end="", flush=True)  # in one write: two processes share the pipe
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
    """


def test_a_plain_process(anywhere: PilotData, tables: Path) -> None:
    """It has no client, and does not so much as import dpilot."""
    url = url_of(put(anywhere, *tables.iterdir()))
    with script(PLAIN, url, PYTHONWARNINGS="error::ResourceWarning") as process:
        out, errors = process.end()
    assert out.split() == [str(SUM)] * 3
    assert errors == ""


def test_what_a_machine_has_in_its_cache_is_read_there(
    pcs: PilotComputeService, pds: PilotDataService, cds: ComputeDataService, tmp_path: Path
) -> None:
    eu = {"affinity_datacenter_label": "eu", "affinity_machine_label": "eu-1"}
    us = {"affinity_datacenter_label": "us", "affinity_machine_label": "us-1"}
    work = {"service_url": "fork://localhost", "number_of_processes": 1, "working_directory": str(tmp_path / "work")}
    pcs.create_pilot({**work, **eu})
    server = pds.create_pilot({"service_url": f"file://{tmp_path / 'us'}", **us})
    unit = put(server, Path(write(tmp_path / "a.bin", 100)))
    url = f"{url_of(unit)}/a.bin"

    def where(url: str, *_: Any) -> str:
        fsspec.filesystem("dpilot").invalidate_cache()
        with fsspec.open(url) as file:
            return str(file.name) if file.read() else ""

    assert str(tmp_path / "us") in cds.submit(where, url).result(LONG_S)
    assert cds.submit(where, url, unit).result(LONG_S).startswith(str(tmp_path / "us"))  # which is visible
    # Where the store is not visible, the cache is: as if it were another machine's.
    hidden = (tmp_path / "us" / ".dpilot-store.json").rename(tmp_path / "marker")
    assert str(tmp_path / "work" / ".dpilot-cache") in cds.submit(where, url).result(LONG_S)
    hidden.rename(tmp_path / "us" / ".dpilot-store.json")


def test_from_one_machine_to_another(network: Network, tmp_path: Path) -> None:
    grid = Grid(network, network.scheduler())
    grid.pilot("a")
    unit = put(grid.store("a"), Path(write(tmp_path / "a.bin")))
    url, content = f"{url_of(unit)}/a.bin", (tmp_path / "a.bin").read_bytes()
    fs, path = fsspec.url_to_fs(url)
    assert fs.cat_file(path) == content
    with fs.open(path) as file:
        file.seek(-7, os.SEEK_END)
        assert file.read() == content[-7:]
    code = dedent(
        """
        import hashlib, sys, fsspec
        with fsspec.open(sys.argv[1]) as file:
            print(hashlib.sha256(file.read()).hexdigest())
        """
    )
    command = network.at("b", sys.executable, "-c", code, url)
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert found.stdout.split() == [hashlib.sha256(content).hexdigest()]
    assert found.stderr == ""


# -- replicas


def spoil(path: Path, how: str) -> None:
    path.chmod(0o644)
    if how == "gone":
        path.unlink()
    elif how == "short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(b"x" * path.stat().st_size)


@pytest.fixture
def two(pds: PilotDataService, tmp_path: Path) -> tuple[DataUnit, list[Path]]:
    """A data unit with two replicas, and its file in each."""
    stores = [pds.create_pilot({"service_url": f"file://{tmp_path / name}"}) for name in "ab"]
    unit = put(stores[0], Path(write(tmp_path / "x.bin", 10_000)))
    stores[1].put_du(unit)
    return unit, [tmp_path / name / unit.id / "x.bin" for name in "ab"]


@pytest.mark.parametrize("how", ["gone", "short", "other"])
@pytest.mark.parametrize("which", [0, 1])
def test_the_next_replica_where_one_is_damaged(
    two: tuple[DataUnit, list[Path]], how: str, which: int, tmp_path: Path
) -> None:
    unit, paths = two
    content = (tmp_path / "x.bin").read_bytes()
    spoil(paths[which], how)
    fs, path = fsspec.url_to_fs(f"{url_of(unit)}/x.bin")
    assert fs.cat_file(path) == content
    if how != "other":  # of what is read in part the checksum is not known
        with fs.open(path) as file:
            assert file.read() == content
    spoil(paths[1 - which], how)
    with pytest.raises(
        DataError, match=rf"'x.bin' of data unit {unit.id} could not be read from any of its 2 replicas"
    ):
        fs.cat_file(path)


# -- errors


def test_errors(store: PilotData, tmp_path: Path) -> None:
    url = url_of(put(store, Path(write(tmp_path / "a", 9))))
    root, _, id = url.rpartition("/")
    read: Callable[[str], Any] = lambda url: fsspec.open(url).open().close()  # noqa: E731
    with pytest.raises(FileMissingError, match=rf"data unit {id} at tcp://.* has no file 'b'; its files: 'a'"):
        read(f"{url}/b")
    with pytest.raises(FileNotFoundError, match=r"there is no data unit 'du-0123456789ab' at tcp://"):
        read(f"{root}/du-0123456789ab/a")
    with pytest.raises(IsADirectoryError):
        read(url)
    with pytest.raises(DescriptionError, match=r"names no scheduler; write dpilot://HOST:PORT/DU/NAME"):
        read(f"dpilot://{id}/a")
    with dask.config.set({"dpilot.scheduler.connect-timeout": "300ms"}):
        for act in (read, pd.read_csv, lambda url: fsspec.filesystem("dpilot").exists(url)):
            with pytest.raises(ConnectionLostError, match=r"no scheduler answers at tcp://127.0.0.1:1: "):
                act("dpilot://127.0.0.1:1/du-0123456789ab/a")
        with pytest.raises(ConnectionLostError, match=r"no scheduler answers"):
            fsspec.filesystem("dpilot").glob("dpilot://127.0.0.1:1/du-0123456789ab/*")


def test_a_data_unit_without_a_replica(cds: ComputeDataService) -> None:
    unit = cds.submit_compute_unit(
        {"executable": "/bin/true", "output_data": [{"later": ["x"]}], "affinity_machine_label": "none"}
    ).output_data["later"]
    with pytest.raises(DataError, match=rf"{unit.id} is Pending and has no replica yet to be read; wait\(\) for it"):
        fsspec.open(f"{url_of(unit)}/x").open()


def test_writing_is_refused(store: PilotData, tmp_path: Path) -> None:
    url = f"{url_of(put(store, Path(write(tmp_path / 'a', 9))))}/new"
    fs = fsspec.filesystem("dpilot")
    acts: list[Callable[[], Any]] = [
        lambda: fs.open(url, "wb"),
        lambda: fs.pipe_file(url, b"x"),
        lambda: fs.put(str(tmp_path / "a"), url),
        lambda: fs.rm(url, recursive=True),
        lambda: fs.makedirs(url, exist_ok=True),
        lambda: fs.touch(url),
        lambda: pd.DataFrame({"a": [1]}).to_csv(url),
    ]
    for act in acts:
        with pytest.raises(DataError, match=r"can only be read by their URLs; submit_data_unit\(\) makes"):
            act()


@pytest.mark.s3
def test_secrets_are_not_shown(pds: PilotDataService, s3: S3, tmp_path: Path) -> None:
    store = pds.create_pilot({"service_url": f"s3://{s3.bucket()}/x", "storage_options": s3.storage_options})
    unit = put(store, Path(write(tmp_path / "a", 9)))
    fs, path = fsspec.url_to_fs(f"{url_of(unit)}/a")
    store._store.remove(unit.id)
    with (
        dask.config.set({"dpilot.data.retries": 0}),
        pytest.raises(StoreError, match="could not be read from any of its 1 replicas") as caught,
    ):
        fs.cat_file(path)
    with fs.open(path) as file:
        shown = [
            repr(fs),
            repr(file),
            repr(fs.info(path)),
            str(caught.value),
            fs.to_json(),
            repr(vars(fs)),
            repr(vars(file)),
        ]
    for text in shown:
        assert s3.secret not in text
