"""Lists of handles as data frames, against what the handles say; and bars while one waits."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import dpilot
from dpilot import ComputeDataService, ComputeUnit, DataUnit, PilotCompute, PilotComputeService, PilotDataService
from dpilot.errors import PilotError, PilotTimeoutError
from tests.helpers import LONG_S, Gate
from tests.units import hold

pytestmark = pytest.mark.cluster

SITES = ("EWR", "JFK")
NBYTES = 400_000


class Run:
    """A run at two sites: units that are done, that failed, and one that waits for ever."""

    def __init__(self, cds: ComputeDataService, pcs: PilotComputeService, pds: PilotDataService, at: Path) -> None:
        self.cds = cds
        (at / "numbers").write_bytes(bytes(NBYTES))
        self.pilots: dict[str, PilotCompute] = {}
        self.data: dict[str, DataUnit] = {}
        stores = []
        for site in SITES:
            labels = {"affinity_datacenter_label": site, "affinity_machine_label": f"{site}-1"}
            work = {"number_of_processes": 2, "working_directory": str(at / site / "work")}
            self.pilots[site] = pcs.create_pilot({"service_url": "fork://localhost", **work, **labels})
            stores.append(pds.create_pilot({"service_url": f"file://{at / site / 'data'}", **labels}))
        for site in SITES:
            self.data[site] = cds.submit_data_unit(
                {"file_urls": [str(at / "numbers")], "name": site, "affinity_datacenter_label": site}
            )
        pcs.wait_running()
        self.data["EWR"].wait(LONG_S)
        self.data["EWR"].add_pilot_data(stores[1])
        self.data["EWR"].wait_replicas(2, LONG_S)
        self.data["JFK"].wait(LONG_S)
        self.done = cds.submit_compute_unit_batch(
            {"executable": "/usr/bin/wc", "arguments": ["-c", "numbers"], "input_data": [self.data[site]]}
            for site in SITES * 2
        )
        self.failed = cds.submit_compute_unit({"executable": "/bin/ls", "arguments": ["/no/such"], "name": "look"})
        for unit in (*self.done, self.failed):
            unit.wait(LONG_S)
        self.empty = cds.submit_data_unit({"name": "nothing"})
        self.stuck = cds.submit_compute_unit({"executable": "/bin/true", "input_data": [self.empty]})

    @property
    def units(self) -> list[ComputeUnit]:
        return [*self.done, self.failed, self.stuck]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with PilotComputeService() as pcs, PilotDataService() as pds, ComputeDataService() as cds:
        cds.add_pilot_compute_service(pcs)
        cds.add_pilot_data_service(pds)
        yield Run(cds, pcs, pds, tmp_path_factory.mktemp("run"))


def test_units_frame_says_what_handles_say(run: Run) -> None:
    frame = run.cds.units_frame()
    assert set(frame.index) == {unit.id for unit in run.units}
    for unit in run.units:
        row, details = frame.loc[unit.id], unit.get_details()
        assert (row["state"], row["name"], row["slots"]) == (unit.state, unit.name, 1)
        assert row["submitted"].timestamp() == pytest.approx(unit.history[1].timestamp, abs=1e-5)
        for column, key in (("local_bytes", "local"), ("cross_datacenter_bytes", "cross_datacenter")):
            assert row[column] == details["bytes"][key]
        if unit is run.stuck:
            assert pd.isna(row["pilot"])
            assert pd.isna(row["began"])
            assert pd.isna(row["ended"])
            continue
        pilot = unit.pilot
        assert (row["pilot"], row["datacenter"], row["machine"]) == (pilot.id, *pilot.site)
        assert row["ended"].timestamp() == pytest.approx(unit.history[-1].timestamp, abs=1e-5)
        whole_s = (row["ended"] - row["submitted"]).total_seconds()
        assert row["waited_s"] + row["staged_s"] + row["ran_s"] == pytest.approx(whole_s, abs=1e-3)
    assert "No such file" in frame.loc[run.failed.id, "error"]
    assert frame["error"].notna().sum() == 1


def test_data_units_frame_says_what_handles_say(run: Run) -> None:
    frame = run.cds.data_units_frame()
    assert list(frame.index) == [unit.id for unit in run.cds.list_data_units()]
    row = frame.loc[run.data["EWR"].id]
    assert (row["name"], row["state"], row["files"], row["bytes"], row["replicas"]) == ("EWR", "Running", 1, NBYTES, 2)
    assert row["pilot_data"] == [store.id for store in run.data["EWR"].list_pilot_data()]
    assert row["datacenters"] == list(SITES)
    assert row["ready"]
    assert row["placed"] >= row["submitted"]
    empty = frame.loc[run.empty.id]
    assert (empty["ready"], empty["files"]) == (False, 0)


def test_decisions_frame_says_what_explain_says(run: Run) -> None:
    frame = run.cds.decisions_frame().set_index("unit")
    assert list(frame.index) == [unit.id for unit in run.units]
    for unit in run.units:
        decision, row = unit.explain(), frame.loc[unit.id]
        assert row["reason"] == decision.reason
        assert row["considered"] == len(decision.rows)
        if unit is not run.stuck:
            chosen = next(row for row in decision.rows if row.verdict == "chosen")
            assert (row["pilot"], row["verdict"], row["cost_s"]) == (chosen.pilot, "chosen", chosen.cost_s)
            assert tuple(row[["local_bytes", "same_datacenter_bytes", "cross_datacenter_bytes"]]) == chosen.nbytes
    every = run.cds.decisions_frame(all_pilots=True)
    assert len(every) == 2 * (len(run.units) - 1) + 1
    assert set(every["verdict"].dropna()) <= {"chosen", "best", "possible", "rejected"}
    assert run.empty.id in frame.loc[run.stuck.id, "reason"]


def test_transfers_frame_compares_prediction_and_outcome(run: Run) -> None:
    frame = run.cds.transfers_frame()
    rows = {row["id"]: row for row in run.cds.transfers()}
    assert set(frame.index) == set(rows)
    copy = frame[frame["kind"] == "copy"].iloc[0]
    told = rows[copy.name]
    assert copy["predicted_s"] == told["predicted_s"] > 0
    assert copy["actual_s"] == pytest.approx(told["ended"] - told["began"], abs=1e-5)
    assert copy["actual_to_predicted"] == pytest.approx(copy["actual_s"] / copy["predicted_s"])
    assert (copy["bytes"], copy["moved_bytes"], copy["data_unit"]) == (NBYTES, NBYTES, run.data["EWR"].id)


def test_frames_of_an_idle_service_are_empty() -> None:
    with ComputeDataService() as cds:
        for frame in (cds.units_frame(), cds.data_units_frame(), cds.decisions_frame(), cds.transfers_frame()):
            assert len(frame) == 0
            assert "state" in frame.columns or "kind" in frame.columns


def test_a_frame_is_one_call(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    call = run.cds._session.call
    monkeypatch.setattr(run.cds._session, "call", lambda name, **rest: (calls.append(name), call(name, **rest))[1])
    for make in (run.cds.units_frame, run.cds.data_units_frame, run.cds.decisions_frame, run.cds.transfers_frame):
        make()
    assert calls == ["units_table", "data_table", "decisions_table", "transfers"]


def test_without_pandas_the_error_says_what_to_install(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(PilotError, match=r"pip install 'dpilot\[notebook\]'"):
        run.cds.units_frame()


@pytest.mark.bench
def test_frames_of_many_units(pilot: PilotCompute, cds: ComputeDataService, tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    cds.submit_compute_unit_batch({"executable": hold, "args": (gate.path,)} for _ in range(10_000))
    for make in (cds.units_frame, cds.decisions_frame, lambda: cds.decisions_frame(all_pilots=True)):
        cds._session.settle()
        began = time.perf_counter()
        assert len(make()) >= 10_000
        print(f"{time.perf_counter() - began:.3f} s")  # noqa: T201
    gate.open()
    cds.cancel()


# ---------------------------------------------------------------- bars


class Terminal:
    """What tqdm takes for a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_bars_of_units_bytes_and_transfers(
    cds: ComputeDataService, pilot: PilotCompute, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate = Gate(tmp_path / "gate")
    units = [cds.submit(hold, gate.path, name=gate.name) for _ in range(3)]
    failing = cds.submit_compute_unit({"executable": "/bin/false"})
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(PilotTimeoutError, match=units[0].id):
        dpilot.progress([units[0]], timeout=0.3)
    assert "0/1" in terminal.text
    gate.open()
    dpilot.progress([*units, failing], timeout=LONG_S)
    assert "4/4" in terminal.text
    assert "1 failed" in terminal.text
    cds.wait(LONG_S, progress=True)
    with pytest.raises(PilotError, match="is not a unit"):
        dpilot.progress(pilot)


def test_bars_show_what_is_moved(
    cds: ComputeDataService, pds: PilotDataService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pds.create_pilot({"service_url": f"file://{tmp_path / 'store'}"})
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(600_000_000)  # long enough on its way to be seen
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    unit = cds.submit_data_unit({"file_urls": [str(source)]})
    cds.wait(60, progress=True)
    assert unit.state == "Running", unit.exception()
    assert "1/1" in terminal.text
    assert "/600M" in terminal.text
    assert "transfers" in terminal.text
    unit.delete()


# ---------------------------------------------------------------- errors


def divide(by: int) -> float:
    return 1 / by


def test_an_error_shows_the_units_own_code_and_nothing_else(cds: ComputeDataService, pilot: PilotCompute) -> None:
    unit = cds.submit(divide, 0)
    with pytest.raises(ZeroDivisionError) as caught:
        unit.result(LONG_S)
    names = [str(entry.name) for entry in caught.traceback]
    assert names[-1] == "divide"
    assert not {"run_unit", "_run", "_work"} & set(names)
    assert caught.value.__notes__ == [f"This was {unit.id} (divide), on {unit.pilot.id}"]
    with pytest.raises(ZeroDivisionError) as again:
        unit.result()
    assert len(again.traceback) == len(caught.traceback)
    assert len(again.value.__notes__) == 1


def test_a_program_that_failed_shows_the_end_of_its_stderr(cds: ComputeDataService, pilot: PilotCompute) -> None:
    unit = cds.submit_compute_unit({"executable": "/bin/ls", "arguments": ["/no/such"]})
    with pytest.raises(dpilot.ExecutableError, match="No such file") as caught:
        unit.result(LONG_S)
    assert [entry.name for entry in caught.traceback][1:] == ["result"]
    assert "No such file" in caught.value.stderr
