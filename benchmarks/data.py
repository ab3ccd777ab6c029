"""How fast files move, beside the tools that are made for it; and what a catalogue of many data units costs.

``python -m benchmarks.data`` measures against an S3 server (SeaweedFS) that it starts on this machine: the server has
its share of the same processors, so compare rows, not seconds with those of another machine. Every byte that dpilot
moves is hashed and verified. The tools are programs that start anew; dpilot is part of one that runs already.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import dask
import fsspec
import psutil
import xxhash

from dpilot import ComputeDataService, PilotComputeService, PilotDataService, StagedData
from dpilot.data import Store, copy_unit, download, expand_sources, upload
from dpilot.demo.seaweed import s3_server
from dpilot.monitor.tables import text_table

__all__ = ["Row", "measure"]

MIB = 1024 * 1024
_PIECE = memoryview(bytes(32 * 1024))
DU = "du-1"


class Row(dict[str, Any]):
    """One line of the table: what was measured, by what system, and its figures."""


def measure(
    directory: Path,
    *,
    large: int,
    files: int,
    file_nbytes: int,
    units: int,
    unit_nbytes: int,
    catalogue: int,
    repeat: int,
) -> list[Row]:
    """Run all measurements.

    Parameters
    ----------
    directory : Path
        An empty one, on the disk to measure with.
    large : int
        The bytes of one large file.
    files, file_nbytes : int
        How many small files, and the bytes of each.
    units, unit_nbytes : int
        How many units want the same remote data unit, and its bytes.
    catalogue : int
        How many data units are submitted, looked up and listed.
    repeat : int
        The medians of so many runs are told.

    Returns
    -------
    list of Row
        Those of dpilot have a ``ratio``, where there is a baseline: its speed over that of the best one.
    """
    rows: list[Row] = []
    with s3_server(directory / "s3", ["units"]) as options:
        for number, nbytes in ((1, large), (files, file_nbytes)):
            source = directory / "source"
            source.mkdir()
            for i in range(number):
                _write_random(source / f"f{i:05}", nbytes)
            what = f"{number:,} x {_size(nbytes)}"
            rows += _s3(what, number * nbytes, source, directory, options, repeat)
            rows += _local(what, number * nbytes, source, directory, repeat)
            _clear(source)
        rows += _hashes(repeat)
        rows += _many_units(directory, options, units, unit_nbytes)
    return [*rows, *_catalogue(catalogue)]


def _size(nbytes: int) -> str:
    return f"{nbytes // MIB:,} MiB" if nbytes >= MIB else f"{nbytes // 1024} KiB"


def _write_random(path: Path, nbytes: int) -> None:
    with path.open("wb") as file:
        for start in range(0, nbytes, 16 * MIB):
            file.write(os.urandom(min(16 * MIB, nbytes - start)))


def _seconds(run: Callable[[], object], directory: Path | None = None, nbytes: int = 0) -> float:
    """How long it takes, with memory at hand for files of so many bytes, and as many again.

    A virtual machine gives memory back to its host that has not been used for seconds, and gets it again page by page:
    whoever is measured first then would pay seconds for it. With just as much as is needed, it would still be so for
    every second one that is measured.
    """
    if directory is not None:
        with (directory / "memory").open("wb", buffering=0) as file:
            for start in range(0, 2 * nbytes, _PIECE.nbytes):
                file.write(_PIECE[: 2 * nbytes - start])
            file.truncate(0)
    os.sync()  # what was written before is not to be paid for now
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def _clear(directory: Path) -> None:
    """Free the bytes of its files, and the name, but no inodes: ext4 is slow to give new ones when some were freed."""
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            os.truncate(path, 0)
    directory.rename(directory.with_name(f"old-{uuid.uuid4().hex}"))


def _rows(what: str, nbytes: int, taken: Mapping[str, list[float]]) -> list[Row]:
    medians = {system: statistics.median(seconds) for system, seconds in taken.items()}
    baselines = [seconds for system, seconds in medians.items() if system != "dpilot"]
    rows = []
    for system, seconds in medians.items():
        row = Row(what=what, system=system, seconds=seconds, mb_per_s=nbytes / seconds / 1e6)
        row |= {"fastest_s": min(taken[system]), "slowest_s": max(taken[system])}
        if system == "dpilot" and baselines:
            row["ratio"] = min(baselines) / seconds
        rows.append(row)
    return rows


# ---------------------------------------------------------------------- files to and from S3


def _s3(
    what: str, nbytes: int, source: Path, directory: Path, options: Mapping[str, Any], repeat: int
) -> Iterator[Row]:
    fs = fsspec.filesystem("s3", use_listings_cache=False, **options)
    movers = {"dpilot": _by_dpilot(options)} | _by_tools(options)
    ups: dict[str, list[float]] = {system: [] for system in movers}
    downs: dict[str, list[float]] = {system: [] for system in movers}
    target = directory / "target"
    for _ in range(repeat):
        for system, (up, down) in movers.items():  # in turns, so that a disturbance may meet each of them
            bucket = f"bench-{uuid.uuid4().hex[:12]}"
            fs.mkdir(bucket)
            target.mkdir()
            ups[system].append(_seconds(partial(up, source, bucket), directory, nbytes))
            downs[system].append(_seconds(partial(down, bucket, target), directory, nbytes))
            _check(target, source)
            _clear(target)
            fs.rm(bucket, recursive=True)
    yield from _rows(f"{what}, worker to S3", nbytes, ups)
    yield from _rows(f"{what}, S3 to worker", nbytes, downs)


def _check(target: Path, source: Path) -> None:
    found, expected = ({p.name: p.stat().st_size for p in d.rglob("f*") if p.is_file()} for d in (target, source))
    assert found == expected, f"{len(found)} of {len(expected)} files arrived whole"


_Mover = tuple[Callable[[Path, str], object], Callable[[str, Path], object]]


def _by_dpilot(options: Mapping[str, Any]) -> _Mover:
    def up(source: Path, bucket: str) -> None:
        upload(expand_sources([f"{source}/"]), Store(f"s3://{bucket}", options).open(), DU)

    def down(bucket: str, target: Path) -> None:
        store = Store(f"s3://{bucket}", options).open()
        download(store, store.read_manifest(DU), target)

    return up, down


def _by_tools(options: Mapping[str, Any]) -> dict[str, _Mover]:
    """s5cmd and rclone as they come, where they are installed."""
    endpoint, key, secret = options["endpoint_url"], options["key"], options["secret"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_"))}
    env |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1"}
    remote = {
        "TYPE": "s3",
        "PROVIDER": "Other",
        "ENDPOINT": endpoint,
        "ACCESS_KEY_ID": key,
        "SECRET_ACCESS_KEY": secret,
    }
    env |= {f"RCLONE_CONFIG_S_{name}": value for name, value in remote.items()} | {"RCLONE_CONFIG": os.devnull}

    def run(*command: str) -> None:
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)

    beside = Path(sys.executable).with_name("s5cmd")
    s5cmd = str(beside) if beside.exists() else shutil.which("s5cmd")
    rclone = shutil.which("rclone")
    movers: dict[str, _Mover] = {}
    if s5cmd:
        copy = (s5cmd, "--endpoint-url", endpoint, "--log", "error", "cp")
        movers["s5cmd"] = (
            lambda source, bucket: run(*copy, f"{source}/*", f"s3://{bucket}/"),
            lambda bucket, target: run(*copy, f"s3://{bucket}/*", f"{target}/"),
        )
    if rclone:
        movers["rclone"] = (
            lambda source, bucket: run(rclone, "copy", str(source), f"S:{bucket}"),
            lambda bucket, target: run(rclone, "copy", f"S:{bucket}", str(target)),
        )
    return movers


# ---------------------------------------------------------------------- files on this machine


def _local(what: str, nbytes: int, source: Path, directory: Path, repeat: int) -> Iterator[Row]:
    first = Store(directory / "first").open()
    manifest = upload(expand_sources([f"{source}/"]), first, DU)
    unit, copy = directory / "first" / DU, directory / "copy"
    taken: dict[str, list[float]] = {"dpilot": [], "cp -r": []}
    for _ in range(repeat):
        second = Store(directory / "second").open()
        taken["dpilot"].append(_seconds(partial(copy_unit, first, second, manifest), directory, nbytes))
        _clear(directory / "second")
        copying = partial(subprocess.run, ["cp", "-r", unit, copy], check=True)
        taken["cp -r"].append(_seconds(copying, directory, nbytes))
        _clear(copy)
    _clear(directory / "first")
    yield from _rows(f"{what}, store to store on one disk", nbytes, taken)


def _hashes(repeat: int) -> Iterator[Row]:
    """What a checksum costs, by itself; dpilot's is the first."""
    data = os.urandom(256 * 1024)
    rounds = 200
    algorithms: dict[str, Callable[[bytes], object]] = {
        "xxh3_128 (dpilot's)": xxhash.xxh3_128_digest,
        "crc32": zlib.crc32,
        "sha256": hashlib.sha256,
        "blake2b": hashlib.blake2b,
    }
    for name, algorithm in algorithms.items():

        def run(algorithm: Callable[[bytes], object] = algorithm) -> None:
            for _ in range(rounds):
                algorithm(data)

        yield from _rows("checksum of cached bytes", rounds * len(data), {name: [_seconds(run) for _ in range(repeat)]})


# ---------------------------------------------------------------------- many units, one data unit


def _length(data: StagedData) -> int:
    return sum(Path(path).stat().st_size for path in data.files.values())


@contextmanager
def _counted(endpoint: str) -> Iterator[tuple[str, Callable[[], int]]]:
    """A way to a server on which the bytes that it sends are counted: its URL, and how many there were."""
    to = urlsplit(endpoint)
    count, url, stop, ready = 0, "", asyncio.Event(), threading.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: bool) -> None:
        nonlocal count
        try:
            while chunk := await reader.read(MIB):
                count += len(chunk) * counts
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(to.hostname, to.port)
        with suppress(asyncio.CancelledError):  # at the end; else asyncio would print it
            await asyncio.gather(pump(reader, back, False), pump(there, writer, True))

    async def serve() -> None:
        nonlocal url, stop
        server = await asyncio.start_server(connect, "127.0.0.1", 0)
        url = "http://{}:{}".format(*server.sockets[0].getsockname())
        stop = asyncio.Event()
        ready.set()
        await stop.wait()
        server.close()

    loop = asyncio.new_event_loop()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield url, lambda: count
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def _many_units(directory: Path, options: Mapping[str, Any], units: int, nbytes: int) -> Iterator[Row]:
    """Units on two slots of one machine that all want one data unit, which lies elsewhere."""
    us, eu = ({"affinity_datacenter_label": dc, "affinity_machine_label": dc} for dc in ("us", "eu"))
    source = directory / "unit"
    _write_random(source, nbytes)
    with (
        _counted(options["endpoint_url"]) as (url, count),
        PilotComputeService() as pcs,
        PilotDataService() as pds,
        ComputeDataService() as cds,
    ):
        cds.add_pilot_compute_service(pcs)
        cds.add_pilot_data_service(pds)
        work = {"number_of_processes": 2, "working_directory": str(directory / "work")}
        pilot = pcs.create_pilot({"service_url": "fork://localhost", **work, **eu})
        store = pds.create_pilot(
            {"service_url": "s3://units/store", "storage_options": {**options, "endpoint_url": url}, **us}
        )
        data = store.submit_data_unit({"file_urls": [str(source)]})
        data.wait()
        pilot.wait_running()
        sent = count()
        begun = time.perf_counter()
        work_units = [cds.submit(_length, data) for _ in range(units)]
        assert {unit.result() for unit in work_units} == {nbytes}
        seconds = time.perf_counter() - begun
        told = sum(unit.get_details()["bytes"]["cross_datacenter"] for unit in work_units)
        yield Row(
            what=f"{units} units want one remote {_size(nbytes)}",
            system="dpilot",
            seconds=seconds,
            link_nbytes=count() - sent,
            told_nbytes=told,
            times=(count() - sent) / nbytes,
        )


# ---------------------------------------------------------------------- the catalogue


def _catalogue(n: int) -> Iterator[Row]:
    def resident() -> int:
        """The memory of this process and of its children, the scheduler among them."""
        here = psutil.Process()
        return sum(process.memory_info().rss for process in (here, *here.children(recursive=True)))

    with PilotComputeService() as pcs, ComputeDataService() as cds:
        cds.add_pilot_compute_service(pcs)
        before = resident()
        descriptions: list[dict[str, Any]] = [{"file_urls": []} for _ in range(n)]
        begun = time.perf_counter()
        units = submit_data_units(cds, descriptions)
        units[-1].get_details()  # the scheduler has taken them all
        submitted = time.perf_counter()
        memory = resident() - before
        for unit in units:
            assert cds.get_data_unit(unit.id) is unit
        looked_up = time.perf_counter()
        assert len(cds.list_data_units()) == n
        listed = time.perf_counter()
        units[n // 2].get_details()
        asked = time.perf_counter()
    what = f"{n:,} data units"
    for action, seconds in (
        ("submit", submitted - begun),
        ("look up", looked_up - submitted),
        ("list", listed - looked_up),
    ):
        yield Row(what=f"{what}: {action}", system="dpilot", seconds=seconds, each_us=seconds / n * 1e6)
    yield Row(what=f"{what}: ask the scheduler about one", system="dpilot", seconds=asked - listed)
    yield Row(what=f"{what}: memory of all processes", system="dpilot", each_nbytes=memory / n)


def submit_data_units(cds: ComputeDataService, descriptions: list[dict[str, Any]]) -> list[Any]:
    """The way to submit many."""
    return cds.submit_data_unit_batch(descriptions)


# ---------------------------------------------------------------------- the command


@click.command()
@click.option("--large", default=2048.0, show_default=True, help="MiB of one large file.")
@click.option("--files", default=2000, show_default=True, help="Small files.")
@click.option("--file", "small", default=256, show_default=True, help="KiB of each of them.")
@click.option("--units", default=64, show_default=True, help="Units that want the same data unit.")
@click.option("--unit", default=256.0, show_default=True, help="MiB of that data unit.")
@click.option("--catalogue", default=100_000, show_default=True, help="Data units in the catalogue.")
@click.option("--repeat", default=3, show_default=True, help="Medians of so many runs.")
@click.option("--directory", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Where to write.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(
    large: float,
    files: int,
    small: int,
    units: int,
    unit: float,
    catalogue: int,
    repeat: int,
    directory: Path | None,
    as_json: bool,
) -> None:
    """Measure how dpilot moves files, beside s5cmd, rclone and cp in the same run."""
    dask.config.set({"dpilot.scheduler.dashboard-address": None})
    with tempfile.TemporaryDirectory(prefix="dpilot-bench-", dir=directory) as place:
        rows = measure(
            Path(place),
            large=int(large * MIB),
            files=files,
            file_nbytes=small * 1024,
            units=units,
            unit_nbytes=int(unit * MIB),
            catalogue=catalogue,
            repeat=repeat,
        )
    if as_json:
        print(json.dumps(rows))
        return
    print(f"Medians of {repeat}. Compare within this table: absolute times differ between machines.\n")
    header = ["what", "by", "time", "from", "to", "MB/s", "of the best baseline"]
    print(text_table(header, [_cells(row) for row in rows]))


def _cells(row: Row) -> list[str]:
    def seconds(key: str) -> str:
        return f"{row[key]:.2f} s" if key in row else ""

    if "each_us" in row:
        last = f"{row['each_us']:.2f} us each"
    elif "each_nbytes" in row:
        last = f"{row['each_nbytes']:,.0f} bytes each"
    elif "times" in row:
        last = f"{row['link_nbytes']:,} bytes on the link: {row['times']:.3f} x the data"
    else:
        last = f"{row['ratio']:.2f} x" if "ratio" in row else ""
    speed = f"{row['mb_per_s']:,.0f}" if "mb_per_s" in row else ""
    return [row["what"], row["system"], seconds("seconds"), seconds("fastest_s"), seconds("slowest_s"), speed, last]


if __name__ == "__main__":
    main()
