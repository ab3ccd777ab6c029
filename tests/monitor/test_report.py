"""The report of a run: its figures against the handles', its page in a browser, and what the simulator makes of it."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dpilot import ComputeDataService, ComputeUnit, DataUnit, PilotComputeService, PilotDataService
from dpilot.cli import main
from dpilot.errors import DescriptionError, PilotError
from dpilot.monitor.blind import blind_nbytes
from dpilot.monitor.report import Report
from dpilot.monitor.tally import COLUMNS, TABLES
from dpilot.monitor.theme import THEMES
from dpilot.placement import Request, Site
from dpilot.runtime.account import Account, AheadTold, DataTold, PilotTold, StoreTold, UnitTold
from dpilot.runtime.records import Times
from dpilot.simulator import Scenario, lower_bound, simulate
from tests.browser import browser, faint_text, show_in, text_of, unlabelled
from tests.helpers import LONG_S
from tests.units import read_one

SITES = ("EWR", "JFK", "LGA")
NBYTES = 200_000
HOSTILE = "<script>document.title='owned'</script>"


# ---------------------------------------------------------------- accounts made by hand


def account(**changes: Any) -> Account:
    empty: tuple[Any, ...] = ()
    made = Account(None, "tcp://127.0.0.1:8786", "1.0", 1000.0, empty, empty, empty, empty, empty)
    return replace(made, **changes)


def pilot_told(id: str, site: Site, slots: int = 2) -> PilotTold:
    return PilotTold(id, site, slots, slots, None, 0, "fork://localhost", None, "Done", 0.0, 1.0, None, 0.001)


def unit_told(id: str, pilot: PilotTold, began: float, **changes: Any) -> UnitTold:
    request = Request("cds-0", changes.pop("kind", "work"), inputs=changes.pop("inputs", ()))
    times = Times(0.0, began, began + 0.1, None, began + 1.0)
    nothing: tuple[Any, ...] = ()
    told = UnitTold(
        id,
        None,
        request,
        "Done",
        pilot.id,
        1,
        0.0,
        False,
        times,
        0.0,
        began,
        (0, 0, 0),
        nothing,
        nothing,
        nothing,
        None,
    )
    return told._replace(**changes)


def test_an_empty_run_has_a_page_and_frames() -> None:
    report = Report(account())
    page = report.html()
    assert "No unit has run" in page
    assert page.count("<section") == 9
    for name in report.names:
        frame = report.frame(name)
        assert tuple(frame.columns) == COLUMNS.get(name, tuple(frame.columns))
    assert report.frame().loc[0, "units"] == 0


def test_names_from_outside_are_escaped() -> None:
    at = pilot_told("pc-1", Site(HOSTILE, HOSTILE))
    units = [
        unit_told(
            f"cu-{i}{HOSTILE}",
            at,
            float(i),
            kind=HOSTILE,
            state="Failed",
            error=f"{HOSTILE}\n{HOSTILE}",
            program=HOSTILE,
        )
        for i in range(3)
    ]
    store = StoreTold("pd-1", Site(HOSTILE, HOSTILE), "file:///x")
    data = DataTold("du-1", HOSTILE, 10, 1, {"pd-1": 0.0})
    units.append(unit_told("cu-9", at, 5.0, inputs=("du-1",), read=("pd-1",), nbytes=(10, 0, 0)))
    page = Report(account(pilots=(at,), units=tuple(units), stores=(store,), data=(data,), owner=HOSTILE)).html()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 10
    assert not re.search(r"(?:src|href)\s*=", page)


def test_a_large_run_has_a_small_page() -> None:
    draw = random.Random(3)
    pilots = [pilot_told(f"pc-{i}", Site(f"dc-{i % 20}", f"m-{i % 200}"), 10) for i in range(1000)]
    stores = [StoreTold(f"pd-{i}", Site(f"dc-{i}"), "s3://x") for i in range(20)]
    data = [DataTold(f"du-{i}", None, 1000, 1, {f"pd-{i % 20}": 0.0}) for i in range(1000)]
    units = [
        unit_told(
            f"cu-{i}", draw.choice(pilots), draw.uniform(0, 900), kind=f"kind {i % 50}", inputs=(f"du-{i % 1000}",),
            read=(f"pd-{i % 20}",), nbytes=(0, 0, 1000), state="Failed" if i % 100 == 0 else "Done", error=f"error {i}",
        )
        for i in range(10_000)
    ]  # fmt: skip
    report = Report(account(pilots=tuple(pilots), units=tuple(units), stores=tuple(stores), data=tuple(data)))
    began = time.process_time()
    page = report.html()
    print(f"{time.process_time() - began:.2f} s, {len(page):,} characters")  # noqa: T201
    assert len(page) < 1_000_000
    assert "10,000 units: drawn is how many of the slots were busy" in page
    assert len(report.frame("units")) == 10_000


@pytest.mark.parametrize("seed", range(4))
def test_the_data_blind_bytes_are_the_mean_over_all_placements(seed: int) -> None:
    draw = random.Random(seed)
    sites = [Site("eu", "eu-1"), Site("eu", "eu-2"), Site("us", "us-1")]
    pilots = [pilot_told(f"pc-{i}", site, draw.randint(1, 2)) for i, site in enumerate(sites)]
    stores = [StoreTold("pd-0", Site("eu", "eu-1"), "file:///x"), StoreTold("pd-1", Site("us"), "s3://x")]
    data = [DataTold(f"du-{i}", None, 10 ** (i + 1), 1, {f"pd-{i % 2}": 0.0}) for i in range(3)]
    units = []
    for i in range(4):
        inputs = tuple(draw.sample([told.id for told in data], draw.randint(1, 2)))
        units.append(unit_told(f"cu-{i}", pilots[0], float(i), inputs=inputs, read=tuple("pd-0" for _ in inputs)))
    units[0] = units[0]._replace(request=units[0].request._replace(site=Site("eu"), require=True))

    of = {told.id: told for told in data}
    site_of = {store.id: store.site for store in stores}
    sums = [0.0, 0.0, 0.0]
    slots = [
        [(p, p.slots) for p in pilots if unit.request.site.datacenter in (None, p.site.datacenter)] for unit in units
    ]
    for placed in itertools.product(*slots):
        chance = 1.0
        for (_, n), able in zip(placed, slots, strict=True):
            chance *= n / sum(m for _, m in able)
        there: set[tuple[str, str]] = set()
        for unit, (pilot, _) in zip(units, placed, strict=True):
            for du in unit.request.inputs:
                (pd,) = of[du].placed
                distance = 0 if (du, pilot.id) in there else int(site_of[pd].distance(pilot.site))
                there.add((du, pilot.id))
                sums[distance] += chance * of[du].nbytes
    told = account(pilots=tuple(pilots), units=tuple(units), stores=tuple(stores), data=tuple(data))
    assert blind_nbytes(told) == pytest.approx(tuple(sums))


def test_what_was_brought_ahead_in_vain_counts_as_moved() -> None:
    at = pilot_told("pc-1", Site("us", "us-1"))
    store, data = StoreTold("pd-1", Site("eu"), "s3://x"), DataTold("du-1", None, 10, 1, {"pd-1": 0.0})
    unit = unit_told("cu-1", at, 1.0, inputs=("du-1",), read=("pd-1",), nbytes=(0, 0, 10))
    ahead = AheadTold("du-1", "pd-1", Site("us", "us-2"), 10, 0.5, 1.0)
    report = Report(account(pilots=(at,), stores=(store,), data=(data,), units=(unit,), unread=(ahead,)))
    row = report.rows("summary")[0]
    assert (row["read_bytes"], row["moved_bytes"], row["blind_moved_bytes"], row["saved_bytes"]) == (10, 20, 10, -10)
    assert report.rows("links") == [{"source": "eu", "target": "us", "transfers": 1, "bytes": 10, "seconds": 0.5}]
    assert "more than" in report.html()


# ---------------------------------------------------------------- a real run


class Run:
    """A run at three sites that has ended, and whose pilots are gone."""

    def __init__(self, cds: ComputeDataService, pcs: PilotComputeService, pds: PilotDataService, at: Path) -> None:
        self.cds = cds
        self.data: dict[str, DataUnit] = {}
        source = at / "numbers"
        source.write_text("7" * NBYTES)
        for site in SITES:
            labels = {"affinity_datacenter_label": site, "affinity_machine_label": f"{site}-1"}
            work = {"number_of_processes": 2, "working_directory": str(at / site / "work")}
            pcs.create_pilot({"service_url": "fork://localhost", **work, **labels})
            pds.create_pilot({"service_url": f"file://{at / site / 'data'}", **labels})
        for site in SITES:
            self.data[site] = cds.submit_data_unit({"file_urls": [str(source)], "affinity_datacenter_label": site})
        pcs.wait_running()
        for unit in self.data.values():
            unit.wait(LONG_S)
        self.site_of = {pilot.id: pilot.site[0] for pilot in pcs.list_pilots()}
        count = {"executable": "/bin/sh", "arguments": ["-c", "sleep 0.1; wc -c numbers"]}
        made = cds.submit_data_unit({"name": "made"})
        self.readers = cds.submit_compute_unit_batch(
            [{**count, "name": "count", "input_data": [self.data[SITES[i % 3]]]} for i in range(18)]
            + [{**count, "input_data": [self.data["JFK"]], "affinity_datacenter_label": "LGA", "affinity": "require"}]
        )
        self.bad = cds.submit_compute_unit_batch(
            [{"executable": "/bin/ls", "arguments": ["/no/such"], "name": HOSTILE}] * 2
        )
        write = {
            "executable": "/bin/sh",
            "arguments": ["-c", "echo 1234 >made.txt"],
            "output_data": [{made: ["made.txt"]}],
        }
        self.writer = cds.submit_compute_unit(write)
        self.reader = cds.submit(read_one, made)
        self.taker = cds.submit(str.upper, self.reader)
        cds.wait(LONG_S)
        self.handles = self.units
        self.live = cds.report()
        pcs.cancel()
        pds.cancel()

    @property
    def units(self) -> list[ComputeUnit]:
        return [*self.readers, *self.bad, self.writer, self.reader, self.taker]

    def placed(self) -> Counter[tuple[str, str]]:
        inputs = [SITES[i % 3] for i in range(18)] + ["JFK"]
        return Counter(
            (site, self.site_of[u.get_details()["pilot"]]) for site, u in zip(inputs, self.readers, strict=True)
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with PilotComputeService() as pcs, PilotDataService() as pds, ComputeDataService() as cds:
        cds.add_pilot_compute_service(pcs)
        cds.add_pilot_data_service(pds)
        yield Run(cds, pcs, pds, tmp_path_factory.mktemp("run"))


@pytest.mark.cluster
def test_the_figures_are_the_handles_after_the_pilots_are_gone(run: Run) -> None:
    report = run.cds.report()
    summary = report.frame().loc[0]
    assert (summary["units"], summary["done"], summary["failed"], summary["slots"]) == (24, 22, 2, 6)
    units = report.frame("units").set_index("unit")
    for unit in run.units:
        row, details = units.loc[unit.id], unit.get_details()
        assert (row["state"], row["pilot"]) == (unit.state, details["pilot"])
        assert row["local_bytes"] == details["bytes"]["local"]
        assert row["cross_datacenter_bytes"] == details["bytes"]["cross_datacenter"]
    matrix = {(row["data"], row["run"]): (row["runs"], row["bytes"]) for row in report.rows("matrix")}
    for sites, n in run.placed().items():
        runs, nbytes = matrix[sites]
        assert (runs, nbytes - n * NBYTES) in ((n, 0), (n + 1, 5))  # one more has read what was written
    kinds = report.frame("kinds").set_index("kind")
    assert kinds.loc["count", ["units", "program"]].tolist() == [18, "/bin/sh"]
    assert kinds.loc["upper", "program"] == "Python function"
    assert 0.1 <= kinds.loc["count", "least_s"] <= kinds.loc["count", "median_s"] <= kinds.loc["count", "most_s"]
    assert report.frame("run_times")["units"].sum() == len(run.units)
    assert report.frame("days")[["done", "failed"]].sum().tolist() == [22, 2]
    assert report.frame("throughput")[["done", "failed"]].sum().tolist() == [22, 2]
    pilots = report.frame("pilots").set_index("pilot")
    assert pilots["datacenter"].to_dict() == run.site_of
    assert pilots["utilisation"].between(0.05, 1).all()
    assert pilots["done"].sum() == 22
    seen, blind = report.rows("bytes")
    unread = sum(had.nbytes for had in report.account.unread)
    assert seen["cross_datacenter_bytes"] - unread == units["cross_datacenter_bytes"].sum() >= NBYTES
    assert blind["cross_datacenter_bytes"] > 0
    assert sum(list(blind.values())[1:]) == pytest.approx(summary["read_bytes"], abs=2)
    assert summary["saved_bytes"] == blind["cross_datacenter_bytes"] - seen["cross_datacenter_bytes"]
    assert report.frame("slowest")["ran_s"].is_monotonic_decreasing or len(report.frame("slowest")) == 20


@pytest.mark.cluster
def test_failures_have_their_errors(run: Run) -> None:
    failures = run.cds.report().frame("failures")
    assert set(failures["unit"]) == {unit.id for unit in run.bad}
    assert failures["error"].str.startswith("'/bin/ls' ended with exit status 2").all()
    assert failures["error"].str.contains("No such file").all()


@pytest.mark.cluster
def test_every_table_has_the_columns_that_an_empty_one_has(run: Run) -> None:
    assert COLUMNS.keys() <= TABLES.keys()
    for name, columns in COLUMNS.items():
        assert tuple(run.live.rows(name)[0]) == columns, name


@pytest.mark.cluster
def test_a_table_that_is_not_there_is_refused(run: Run) -> None:
    with pytest.raises(DescriptionError, match="'pilots'"):
        run.live.frame("pilot")
    with pytest.raises(DescriptionError, match="regret"):
        run.live.frame("regret")


@pytest.mark.cluster
def test_a_report_stays_as_it_was_made_and_notebooks_show_it(run: Run) -> None:
    assert {row["state"] for row in run.live.rows("pilots")} == {"Running"}
    assert {row["state"] for row in run.cds.report().rows("pilots")} == {"Canceled"}
    shown = run.live._repr_html_()
    assert shown.startswith("<iframe")
    assert "<script" not in shown
    assert "24 units" in repr(run.live)


@pytest.mark.cluster
def test_a_recorded_run_is_replayed(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run.cds.record(path)
    recording = Scenario.from_records(path)
    scenario, result = recording.scenario, recording.result
    assert result is not None
    assert {unit.id for unit in scenario.units} == {unit.id for unit in run.units}
    assert {(p.datacenter, p.slots) for p in scenario.pilots} == {(site, 2) for site in SITES}
    assert {data.id: data.nbytes for data in scenario.data}[run.data["EWR"].id] == NBYTES
    wrote = next(unit for unit in scenario.units if unit.id == run.writer.id)
    (made,) = wrote.outputs
    assert next(data for data in scenario.data if data.id == made).replicas == ()
    columns = ["local_bytes", "same_datacenter_bytes", "cross_datacenter_bytes"]
    assert list(result.nbytes) == run.live.frame("units")[columns].sum().tolist()
    assert result.makespan_s == pytest.approx(run.live.rows("summary")[0]["makespan_s"])
    replayed = simulate(scenario, "dpilot")
    assert replayed.n_units == len(run.units)
    assert lower_bound(scenario).makespan_s <= replayed.makespan_s
    told = CliRunner().invoke(main, ["simulate", str(path), "--policy", "dpilot", "--plans", "20"])
    assert told.exit_code == 0, told.output
    assert "recorded" in told.output
    with pytest.raises(DescriptionError, match=r"run\.jsonl"):
        run.cds.record(tmp_path / "run.json")


@pytest.mark.cluster
def test_regret_sets_the_run_beside_a_bound_and_a_plan(run: Run) -> None:
    report = run.cds.report(regret=True)
    rows = report.frame("regret").set_index("policy")
    assert list(rows.index) == ["recorded", "dpilot", "random", "plan"]
    assert report.regret is not None
    assert rows.loc["recorded", "makespan_s"] == pytest.approx(report.rows("summary")[0]["makespan_s"])
    simulated = rows.drop(index="recorded")
    assert (simulated["over_bound"] >= 1 - 1e-9).all()
    assert simulated["over_best"].min() == 1
    assert report.regret.of_run == pytest.approx(rows.loc["recorded", "makespan_s"] / simulated["makespan_s"].min())
    assert "How good the placement was" in report.html()


@pytest.mark.cluster
def test_nothing_to_replay_is_said(tmp_path: Path) -> None:
    with ComputeDataService() as cds:
        cds.report(tmp_path / "run.html")
        assert "No unit has run" in (tmp_path / "run.html").read_text()
        with pytest.raises(PilotError, match="nothing to replay"):
            cds.report(regret=True)


@pytest.mark.cluster
@pytest.mark.parametrize(("width", "theme"), list(itertools.product((1280, 700), THEMES)))
def test_the_page_in_a_browser(run: Run, tmp_path: Path, width: int, theme: str) -> None:
    report = run.cds.report(tmp_path / "run.html")
    with browser(tmp_path / "profile", width) as page:
        show_in(page, theme)
        page.get((tmp_path / "run.html").as_uri())
        assert page.title == f"Report of {run.cds.id}"  # nothing that names say was run
        pieces = text_of(page).split("\n")
        assert pieces[pieces.index("units done") - 1] == "22"
        assert "2 failed" in pieces
        matrix = text_of(page, page.find_element("css selector", "section[aria-label=Placement]")).split("\n")
        assert all(str(row["runs"]) in matrix for row in report.rows("matrix"))
        assert HOSTILE in pieces
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        assert [line for line in page.get_log("browser") if line["level"] == "SEVERE"] == []
        background = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert background == "rgb({}, {}, {})".format(*bytes.fromhex(THEMES[theme]["page"][1:]))
        assert (faint_text(page), unlabelled(page)) == ([], [])


@pytest.mark.cluster
def test_the_command_writes_a_page_and_a_record(run: Run, tmp_path: Path) -> None:
    def command(where: str, name: str) -> str:
        words = [sys.executable, "-m", "dpilot", "report", where, str(tmp_path / name)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert command(run.cds.get_url(), "run.html").startswith(f"<Report of {run.cds.id}: 24 units")
    assert f"<title>Report of {run.cds.id}</title>" in (tmp_path / "run.html").read_text()
    command(run.cds._session.address.removeprefix("tcp://"), "run.jsonl")
    records = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert (records[0]["format"], records[0]["name"]) == ("dpilot-run", "all")
    assert {record["id"] for record in records if record["record"] == "unit"} >= {unit.id for unit in run.units}


@pytest.mark.cluster
def test_the_command_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    refused = CliRunner().invoke(main, ["report", "127.0.0.1:9", str(tmp_path / "run.txt")])
    assert "write .html for a page" in refused.output
    lost = CliRunner().invoke(main, ["report", "127.0.0.1:9", str(tmp_path / "run.html")])
    assert lost.exit_code == 1
    assert "127.0.0.1:9" in lost.output
