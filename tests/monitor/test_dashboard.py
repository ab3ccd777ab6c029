"""The dashboard of a real run at three sites: JSON, metrics, events and the page itself, against the API's numbers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dpilot import ComputeDataService, ComputeUnit, DataUnit, PilotComputeService, PilotDataService, State
from dpilot.monitor.theme import THEMES
from dpilot.runtime.session import Session
from tests.helpers import LONG_S, eventually, script
from tests.services import free_port, wait_for_port

pytestmark = pytest.mark.cluster

SITES = ("EWR", "JFK", "LGA")
NBYTES = 300_000


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=LONG_S) as answer:
        return str(answer.read().decode())


@contextmanager
def scheduler(*options: str) -> Iterator[tuple[str, str]]:
    """A scheduler as somebody starts it by hand: its address, and that of its web server."""
    port, web = free_port(), free_port()
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "tcp://127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--dashboard-address", f"127.0.0.1:{web}", *options], stderr=subprocess.DEVNULL
    )
    try:
        wait_for_port(port, process)
        yield f"tcp://127.0.0.1:{port}", f"http://127.0.0.1:{web}"
    finally:
        process.terminate()
        process.wait(LONG_S)


class Run:
    """A run that has ended but for three units that will wait for ever."""

    def __init__(self, address: str, http: str, directory: Path) -> None:
        self.http = http
        self.events: list[dict[str, Any]] = []
        self.pcs, self.pds, self.cds = (
            PilotComputeService(address),
            PilotDataService(address),
            ComputeDataService(coordination_url=address),
        )
        self.pcs.client.subscribe_topic("dpilot", lambda event: self.events.append(event[1]))
        self.cds.add_pilot_compute_service(self.pcs)
        self.cds.add_pilot_data_service(self.pds)
        self.site_of: dict[str, str] = {}
        self.data: dict[str, DataUnit] = {}
        source = directory / "numbers"
        source.write_bytes(bytes(NBYTES))
        for site in SITES:
            labels = {"affinity_datacenter_label": site, "affinity_machine_label": f"{site}-1"}
            work = {"number_of_processes": 2, "working_directory": str(directory / site / "work")}
            pilot = self.pcs.create_pilot({"service_url": "fork://localhost", **work, **labels})
            self.site_of[pilot.id] = site
            store = self.pds.create_pilot({"service_url": f"file://{directory / site / 'data'}", **labels})
            self.data[site] = store.submit_data_unit({"file_urls": [str(source)], "name": f"numbers of {site}"})
        self.pcs.wait_running()
        for unit in self.data.values():
            unit.wait(LONG_S)
        # Long enough to be seen: slots are looked at four times a second.
        count = {"executable": "/bin/sh", "arguments": ["-c", "sleep 0.2; wc -c numbers"]}
        self.readers = self.cds.submit_compute_unit_batch(
            [{**count, "input_data": [self.data[SITES[i % 3]]]} for i in range(24)]
            # One that must run far away from its data.
            + [{**count, "input_data": [self.data["JFK"]], "affinity_datacenter_label": "LGA", "affinity": "require"}]
        )
        self.bad = self.cds.submit_compute_unit_batch([{"executable": "/bin/false"}] * 2)
        self.empty = self.cds.submit_data_unit({"name": "nothing yet"})
        self.stuck = self.cds.submit_compute_unit_batch([{**count, "input_data": [self.empty]}] * 3)
        for ended in (*self.readers, *self.bad):
            ended.wait(LONG_S)
        eventually(lambda: self.figures("summary")["slots"] == {"busy": 0, "total": 6}, "all slots are seen idle")

    @property
    def units(self) -> list[ComputeUnit]:
        return [*self.readers, *self.bad, *self.stuck]

    def figures(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(get(f"{self.http}/dpilot/api/{name}.json"))
        return found

    def placed(self) -> Counter[tuple[str, str]]:
        """How many units ran where, by the site of their data, as their handles tell."""
        inputs = [SITES[i % 3] for i in range(24)] + ["JFK"]
        where = [self.site_of[unit.get_details()["pilot"]] for unit in self.readers]
        return Counter(zip(inputs, where, strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with scheduler() as (address, http):
        made = Run(address, http, tmp_path_factory.mktemp("run"))
        try:
            yield made
        finally:
            made.cds.cancel()
            made.pcs.cancel()
            made.pds.cancel()
            Session.join(address).close()


def test_the_summary_says_what_the_handles_say(run):
    summary = run.figures("summary")
    assert summary["units"] == Counter(str(unit.state) for unit in run.units) == {"Done": 25, "Failed": 2, "Pending": 3}
    assert summary["pilots"] == {"Running": 3}
    assert (summary["stores"], summary["replicas"], summary["stored_bytes"]) == (3, 4, 3 * NBYTES)
    sums: Counter[str] = Counter()
    for unit in run.readers:
        sums.update(unit.get_details()["bytes"])
    assert summary["input_bytes"] == {
        "same_machine": sums["local"],
        "same_datacenter": sums["same_datacenter"],
        "other_datacenter": sums["cross_datacenter"],
    }
    assert sums["cross_datacenter"] >= NBYTES


def test_pilots_and_units_say_where_each_unit_ran(run):
    ran = Counter(unit.get_details()["pilot"] for unit in (*run.readers, *run.bad))
    rows = {row["pilot"]: row for row in run.figures("pilots")["pilots"]}
    assert {id: row["datacenter"] for id, row in rows.items()} == run.site_of
    assert {id: row["done"] + row["failed"] for id, row in rows.items()} == {id: ran[id] for id in rows}
    assert all((row["slots"], row["busy"], row["running"], row["staging"]) == (2, 0, 0, 0) for row in rows.values())
    units = run.figures("units")
    assert {id: sum(states.values()) for id, states in units["by_pilot"].items()} == dict(ran)
    newest = {row["unit"]: row for row in units["newest"]}
    assert newest.keys() == {unit.id for unit in (*run.readers, *run.bad)}
    assert all(row["began"] <= row["ran"] <= row["ended"] for row in newest.values())
    for unit in run.readers:
        is_far = unit.get_details()["bytes"]["cross_datacenter"] > 0
        assert newest[unit.id]["locality"] == ("other datacenter" if is_far else "same machine")
    assert "other datacenter" in {newest[unit.id]["locality"] for unit in run.readers}
    assert {newest[unit.id]["locality"] for unit in run.bad} == {"no input"}


def test_slots_busy_over_time_are_never_more_than_there_are(run):
    pilots = run.figures("pilots")
    levels = pilots["busy_over_time_by_datacenter"]
    together = pilots["busy_over_time"]["slots"]
    assert set(levels) <= set(SITES)
    assert 0 < max(together) <= 6 + 1e-9
    assert all(max(level["slots"]) <= 2 + 1e-9 for level in levels.values())


def test_the_matrix_says_where_data_lay_and_units_ran(run):
    cells = {(cell["data"], cell["run"]): (cell["runs"], cell["bytes"]) for cell in run.figures("matrix")["cells"]}
    assert cells == {sites: (n, n * NBYTES) for sites, n in run.placed().items()}


def test_transfers_are_told_by_link_with_what_was_predicted(run):
    links = {(link["source"], link["target"]): link for link in run.figures("transfers")["links"]}
    assert [links["client", site]["bytes"] for site in SITES] == [NBYTES] * 3
    assert sum(links["client", site]["ended"] for site in SITES) == 4  # one without files
    far = links["JFK", "LGA"]
    assert far["bytes"] == NBYTES * far["ended"] > 0
    assert far["last_actual_seconds"] > 0
    assert far["last_predicted_seconds"] > 0


def test_data_units_are_listed_with_their_replicas(run):
    figures = run.figures("data")
    rows = {row["data_unit"]: row for row in figures["newest"]}
    stores = {row["store"]: row for row in run.figures("stores")["stores"]}
    assert figures["n"] == {"Running": 4}
    for site, unit in run.data.items():
        row = rows[unit.id]
        assert [stores[pd]["datacenter"] for pd in row["replicas"]] == [site]
        assert (row["bytes"], row["files"], row["ready"], row["name"]) == (NBYTES, 1, True, f"numbers of {site}")


def test_waiting_units_have_reasons(run):
    waiting = run.figures("waiting")
    (group,) = waiting["groups"]
    assert (waiting["n"], group["units"], group["kind"]) == (3, 3, "sh")
    assert "input" in group["reason"]
    assert group["example"] in {unit.id for unit in run.stuck}


def test_figures_that_are_not_there_are_named(run):
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"{run.http}/dpilot/api/nothing.json")
    with caught.value as answer:
        assert (answer.code, "summary" in answer.reason) == (404, True)
    assert "waiting.json" in json.loads(get(f"{run.http}/dpilot/api/"))["figures"]


def test_prometheus_reads_the_same_numbers(run):
    samples = {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(get(f"{run.http}/metrics"))
        for sample in family.samples
        if sample.name.startswith("dpilot_")
    }

    def sample(name: str, *labels: str) -> float:
        return samples.get((f"dpilot_{name}", frozenset(labels)), 0.0)

    assert (sample("units", "Done"), sample("units", "Failed"), sample("slots")) == (25, 2, 6)
    for row in run.figures("pilots")["pilots"]:
        labels = row["pilot"], row["datacenter"], row["machine"]
        ended = row["done"] + row["failed"]
        assert sample("pilot_units_total", *labels, "Done") == row["done"]
        assert sample("pilot_run_seconds_count", *labels) == ended
        assert sample("pilot_run_seconds_bucket", *labels, "+Inf") == ended
    assert sample("link_bytes_total", "client", "JFK") == NBYTES


def test_the_grafana_dashboard_asks_for_metrics_that_there_are(run):
    there = {
        sample.name
        for family in text_string_to_metric_families(get(f"{run.http}/metrics"))
        for sample in family.samples
    }
    text = (Path(__file__).parents[2] / "dpilot/monitor/grafana/dpilot.json").read_text()
    asked = set(re.findall(r"dpilot_\w+", " ".join(_expressions(json.loads(text)))))
    assert len(asked) > 8
    assert asked <= there


def _expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def test_subscribers_are_told_of_units_pilots_and_transfers(run):
    def ended() -> Counter[str]:
        counts: Counter[str] = Counter()
        for event in run.events:
            counts.update(event["counts"] if event["what"] == "units" else {})
        return counts

    eventually(lambda: ended() == {"Done": 25, "Failed": 2}, "all ends are told")
    named = {unit["unit"]: unit["state"] for e in run.events if e["what"] == "units" for unit in e["units"]}
    assert all(named[unit.id] == unit.state for unit in (*run.readers, *run.bad))
    running = {e["pilot"] for e in run.events if e["what"] == "pilot" and e["state"] == State.Running}
    assert running == set(run.site_of)
    moved = [t["du"] for e in run.events if e["what"] == "transfers" for t in e["transfers"] if t["kind"] == "upload"]
    assert sorted(moved) == sorted(unit.id for unit in (*run.data.values(), run.empty))


def test_jupyterlab_lists_the_plots_and_every_one_is_there(run):
    plots = json.loads(get(f"{run.http}/individual-plots.json"))
    ours = [path for path in plots.values() if "dpilot" in path]
    assert len(ours) == 8
    for path in ours:
        assert "data-root-id" in get(f"{run.http}{path}")


@pytest.mark.slow
def test_an_embedded_scheduler_has_the_page_too():
    program = """
        from urllib.request import urlopen
        from dpilot import PilotComputeService

        if __name__ == "__main__":
            with PilotComputeService() as pcs:
                base = pcs.client.dashboard_link.removesuffix("/status")
                plots = urlopen(f"{base}/individual-plots.json").read().decode()
                menu = urlopen(f"{base}/status").read().decode()
                print(urlopen(f"{base}/dpilot").status, "dpilot" in plots, '<a href="dpilot">' in menu)
    """
    with script(program, DASK_DPILOT__SCHEDULER__DASHBOARD_ADDRESS="127.0.0.1:0") as process:
        assert process.hear() == "200 True True"
        process.end()


@pytest.mark.slow
def test_a_prefix_is_before_all_paths_and_without_a_dashboard_there_is_json():
    for options, prefix, page in (
        (("--dashboard-prefix", "behind/proxy"), "/behind/proxy", 200),
        (("--no-dashboard",), "", 404),
    ):
        with scheduler(*options) as (address, http):
            PilotComputeService(address).cancel()
            assert json.loads(get(f"{http}{prefix}/dpilot/api/summary.json"))["units"] == {}
            try:
                got = 200 if get(f"{http}{prefix}/dpilot") else 0
            except urllib.error.HTTPError as error:
                with error:
                    got = error.code
            assert got == page
            Session.join(address).close()


@pytest.mark.slow
def test_logging_is_configured_as_dasks_is(tmp_path):
    program = """
        import sys
        from dpilot import ComputeDataService, PilotComputeService

        if __name__ == "__main__":
            with PilotComputeService() as pcs, ComputeDataService() as cds:
                cds.add_pilot_compute_service(pcs)
                work = {"working_directory": sys.argv[1], "affinity_datacenter_label": "EWR"}
                pcs.create_pilot({"service_url": "fork://localhost", **work})
                cds.submit_compute_unit_batch([{"executable": "/bin/true"}, {"executable": "/bin/false"}])
                cds.wait()
    """
    for levels, told, not_told in (
        ({}, [], ["dpilot.monitor"]),
        ({"DASK_LOGGING__DPILOT": "info"}, ["at EWR is Running", "(false) is Failed on pc-"], ["(true) is Done"]),
        ({"DASK_LOGGING__DPILOT": "debug"}, ["at EWR is Running", "(true) is Done on pc-"], []),
    ):
        with script(
            program, str(tmp_path), DASK_DPILOT__SCHEDULER__DASHBOARD_ADDRESS="127.0.0.1:0", **levels
        ) as process:
            log = process.end()[1]
            assert [line for line in told if line not in log] == [], log
            assert [line for line in not_told if line in log] == [], log


@pytest.mark.parametrize("theme", THEMES)
def test_colours_have_contrast(theme):
    colours = THEMES[theme]
    for behind in ("page", "panel"):
        for text in ("ink", "muted", "link", "good", "warn", "bad"):
            assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)
        for mark in ("busy", "machine", "datacenter", "elsewhere", "none"):
            assert contrast(colours[mark], colours[behind]) >= 3, (mark, behind)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [c / 255 for c in _rgb(colour)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
