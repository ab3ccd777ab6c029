"""How many units a second: dpilot's on a pilot of two slots, and plain Dask's on the same workers."""

from __future__ import annotations

import gc
import itertools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

from dpilot import ComputeDataService, PilotComputeService, PilotDataService, StagedData, State
from dpilot.runtime.session import Session

__all__ = ["Row", "measure"]

SLOTS = 2
FILE, FILE_NBYTES = "file", 1_000_000
_numbers = itertools.count()


def noop(number: int) -> None:
    """Do nothing; each call is another one, so that Dask does not take it for one that it has done."""


def read(number: int, data: StagedData) -> None:
    """Read a data unit of one file, which is on the machine."""
    read_file(data.files[FILE], number)


def read_file(path: str, number: int) -> None:
    Path(path).read_bytes()


def true(number: int) -> None:
    subprocess.run(["/bin/true"], check=True)


def true_in_a_sandbox(directory: Path) -> None:
    """The same, in a directory of its own, with its output in files there."""
    directory.mkdir()
    with (directory / "stdout").open("wb") as output, (directory / "stderr").open("wb") as errors:
        subprocess.run(["/bin/true"], check=True, cwd=directory, stdout=output, stderr=errors)


class Row(dict[str, Any]):
    """One line of the table: what was measured, how many units, their rate, and the client's part."""


def measure(n_functions: int, n_singles: int, n_programs: int, repeat: int) -> list[Row]:
    """Run all measurements.

    Parameters
    ----------
    n_functions, n_singles, n_programs : int
        How many no-op functions go in a batch, a fifth of them that read; how many one by one, and how many times
        ``/bin/true`` runs.
    repeat : int
        The medians of so many runs are told.

    Returns
    -------
    list of Row
    """
    rows = _start_up(repeat)
    with tempfile.TemporaryDirectory(prefix="dpilot-bench-") as directory, _services(directory) as (pcs, pds, cds):
        pcs.wait_running()
        client: Client = pcs.client
        workers = list(client.scheduler_info(n_workers=-1)["workers"])
        cds.submit_compute_unit_batch(_functions(10))
        cds.wait()
        client.gather(client.map(noop, range(10), pure=False))
        file = Path(directory, FILE)
        file.write_bytes(bytes(FILE_NBYTES))
        store = pds.create_pilot({"service_url": f"file://{directory}/store"})
        data = store.submit_data_unit({"file_urls": [str(file)]})
        assert data.wait() == State.Running, data.exception()

        def reading(n: int) -> list[dict[str, Any]]:
            return [{"executable": read, "args": (next(_numbers), data)} for _ in range(n)]

        read_path = partial(read_file, str(file))
        cds.submit_compute_unit_batch(reading(10))
        cds.wait()

        def settle() -> None:
            """What a run leaves behind is the next one's no more: Dask forgets its tasks."""
            gc.collect()
            client.run_on_scheduler(_nothing)

        def by_dpilot(descriptions: Callable[[int], list[dict[str, Any]]], single: bool = False) -> _Run:
            def run(n: int) -> float:
                work = descriptions(n)
                begun = time.perf_counter()
                if single:
                    units = [cds.submit_compute_unit(description) for description in work]
                else:
                    units = cds.submit_compute_unit_batch(work)
                submitted = time.perf_counter() - begun
                cds.wait()
                states = {unit.state for unit in units}
                assert states == {State.Done}, f"units ended as {states}"
                return submitted

            return run

        def by_map(function: Callable[[int], None], **options: Any) -> _Run:
            def run(n: int) -> float:
                begun = time.perf_counter()
                futures = client.map(function, [next(_numbers) for _ in range(n)], pure=False, **options)
                submitted = time.perf_counter() - begun
                client.gather(futures)
                return submitted

            return run

        def by_submit(n: int) -> float:
            begun = time.perf_counter()
            futures = [client.submit(noop, next(_numbers), pure=False) for _ in range(n)]
            submitted = time.perf_counter() - begun
            client.gather(futures)
            return submitted

        rows += [
            _rate("no-op functions, a batch", "dpilot", by_dpilot(_functions), n_functions, repeat, settle),
            _rate("", "Client.map", by_map(noop), n_functions, repeat, settle),
            _rate("", "Client.map(workers=...)", by_map(noop, workers=workers), n_functions, repeat, settle),
            _rate("functions that read 1 MB, a batch", "dpilot", by_dpilot(reading), n_functions // 5, repeat, settle),
            _rate("", "Client.map", by_map(read_path), n_functions // 5, repeat, settle),
            _rate("", "Client.map(workers=...)", by_map(read_path, workers=workers), n_functions // 5, repeat, settle),
            _rate(
                "no-op functions, one by one", "dpilot", by_dpilot(_functions, single=True), n_singles, repeat, settle
            ),
            _rate("", "Client.submit", by_submit, n_singles, repeat, settle),
            _rate("/bin/true, sandbox and files each", "dpilot", by_dpilot(_programs), n_programs, repeat, settle),
            _rate(
                "/bin/true by subprocess.run",
                "Client.map(workers=...)",
                by_map(true, workers=workers),
                n_programs,
                repeat,
                settle,
            ),
        ]
    with ProcessPoolExecutor(SLOTS, mp_context=get_context("spawn")) as pool:
        list(pool.map(true, range(SLOTS)))

        def by_pool(n: int) -> float:
            list(pool.map(true, range(n)))
            return 0.0

        rows.append(_rate("", "ProcessPoolExecutor", by_pool, n_programs, repeat))
        with tempfile.TemporaryDirectory(prefix="dpilot-bench-") as directory:

            def by_pool_in_sandboxes(n: int) -> float:
                list(pool.map(true_in_a_sandbox, [Path(directory, str(next(_numbers))) for _ in range(n)]))
                return 0.0

            rows.append(_rate("", "the same, sandbox and files each", by_pool_in_sandboxes, n_programs, repeat))
    return rows


_Run = Callable[[int], float]


def _nothing() -> None:
    pass


def _rate(what: str, system: str, run: _Run, n: int, repeat: int, settle: Callable[[], None] = _nothing) -> Row:
    rates, costs = [], []
    for _ in range(repeat):
        settle()
        begun = time.perf_counter()
        submitted = run(n)
        rates.append(n / (time.perf_counter() - begun))
        costs.append(submitted / n * 1e6)
    return Row(what=what, system=system, n=n, per_second=statistics.median(rates), submit_us=statistics.median(costs))


def _functions(n: int) -> list[dict[str, Any]]:
    return [{"executable": noop, "args": (next(_numbers),)} for _ in range(n)]


def _programs(n: int) -> list[dict[str, Any]]:
    return [{"executable": "/bin/true"} for _ in range(n)]


@contextmanager
def _services(directory: str) -> Iterator[tuple[PilotComputeService, PilotDataService, ComputeDataService]]:
    with PilotComputeService() as pcs, PilotDataService() as pds, ComputeDataService() as cds:
        cds.add_pilot_compute_service(pcs)
        cds.add_pilot_data_service(pds)
        pcs.create_pilot(
            {"service_url": "fork://localhost", "number_of_processes": SLOTS, "working_directory": directory}
        )
        yield pcs, pds, cds


def _start_up(repeat: int) -> list[Row]:
    """Seconds from nothing (but the imports) to the first result, on two worker processes."""

    def dpilot() -> None:
        with tempfile.TemporaryDirectory(prefix="dpilot-bench-") as directory, _services(directory) as (_, _, cds):
            cds.submit(noop, 0).result()
        Session.close_all()

    def dask() -> None:
        with (
            LocalCluster(n_workers=SLOTS, threads_per_worker=1, dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            client.submit(noop, 0).result()

    rows = []
    for what, system, run in (("start to first result and end", "dpilot", dpilot), ("", "LocalCluster", dask)):
        times = []
        for _ in range(repeat):
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
        rows.append(Row(what=what, system=system, n=1, seconds=statistics.median(times)))
    return rows
