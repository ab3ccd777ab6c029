"""Handles and decisions as notebooks and terminals show them: in every state, escaped, and in a browser."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from IPython.lib.pretty import pretty

from dpilot import (
    ComputeDataService,
    ConnectionLostError,
    Decision,
    PilotCompute,
    PilotComputeService,
    PilotData,
    PilotDataService,
)
from dpilot.monitor.cards import Bar, Card, Part, fault_of, states_bar
from dpilot.monitor.drawing import bar_text, card_html
from dpilot.placement import Row
from dpilot.runtime.session import Session
from dpilot.states import State
from tests.browser import browser
from tests.helpers import LONG_S, Gate, eventually, reach
from tests.services import free_port, wait_for_port
from tests.units import hold

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'too'"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


class Parser(HTMLParser):
    """Checks that tags are closed in order, and keeps the text outside of styles."""

    EMPTY = frozenset({"br", "img", "meta", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.tags.add(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def words(shown: Any) -> str:
    """The text of something as HTML, which is well-formed, without scripts, and says what the plain text says."""
    html = shown._repr_html_()
    assert html is not None
    parsed = Parser(html)
    assert "script" not in parsed.tags
    plain = pretty(shown)
    assert plain.startswith(type(shown).__name__)
    for text in (" ".join(parsed.words), plain):
        assert getattr(shown, "id", getattr(shown, "unit", "")) in text
    assert "\n" not in repr(shown)
    return re.sub(r"\s+", " ", " ".join(parsed.words))


@pytest.mark.cluster
def test_a_compute_unit_in_every_state(
    cds: ComputeDataService, pilot: PilotCompute, store: PilotData, gate: Gate, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(bytes(300_000))
    data = store.submit_data_unit({"file_urls": [str(tmp_path / "in")], "name": "input"})
    empty = cds.submit_data_unit({"name": "still empty"})
    waits = cds.submit_compute_unit({"executable": "/bin/true", "input_data": [empty]})
    runs = cds.submit(hold, gate.path, name=gate.name)
    done = cds.submit_compute_unit({"executable": "/usr/bin/wc", "arguments": ["in"], "input_data": [data]})
    fails = cds.submit_compute_unit({"executable": "/bin/ls", "arguments": ["/no/such"], "name": HOSTILE})
    raises = cds.submit(int, HOSTILE)
    reach(runs, State.Running)
    for unit in (done, fails, raises):
        unit.wait(LONG_S)
    text = words(waits)
    assert "Pending" in text
    assert "still empty" in text
    assert "for its input" in text
    assert f"Running pilot {pilot.id}" in words(runs)
    assert "has run" in words(runs)
    text = words(done)
    assert "Done" in text
    assert "300.0 kB" in text
    assert "reads input" in text
    text = words(fails)
    assert HOSTILE in text  # the parser has undone the escapes
    assert "<script>" not in fails._repr_html_()
    assert "ended with exit status 2" in text
    assert "No such file or directory" in text
    assert "No such file or directory" in pretty(fails)
    text = words(raises)
    assert "ValueError: invalid literal" in text
    assert repr([waits]) == f"[{waits!r}]"
    assert pretty([waits]) == f"[{waits!r}]"
    gate.open()
    waits.cancel()
    assert "Canceled" in words(waits)
    text = words(done.explain())
    assert "chosen" in text
    assert pilot.id in text


@pytest.mark.cluster
def test_pilots_stores_and_services(
    pcs: PilotComputeService, pds: PilotDataService, cds: ComputeDataService, gate: Gate, tmp_path: Path
) -> None:
    labels = {"affinity_datacenter_label": "EWR", "affinity_machine_label": HOSTILE}
    work = {"number_of_processes": 3, "working_directory": str(tmp_path / "work")}
    pilot = pcs.create_pilot({"service_url": "fork://localhost", "walltime": 60, **work, **labels})
    near = pds.create_pilot({"service_url": f"file://{tmp_path / 'near'}", "size": "1 MB", **labels})
    far = pds.create_pilot({"service_url": f"file://{tmp_path / 'far'}", "affinity_datacenter_label": "JFK"})
    assert "EWR" in words(pilot)
    pcs.wait_running(LONG_S)
    unit = cds.submit(hold, gate.path, name=gate.name)
    reach(unit, State.Running)
    assert "1 of 3 busy" in words(pilot)
    assert "▮▯▯ 1 of 3 busy" in pretty(pilot)
    assert HOSTILE in words(pilot)
    (tmp_path / "in").write_bytes(bytes(300_000))
    data = near.submit_data_unit({"file_urls": [str(tmp_path / "in")], "name": "<b>&amp;'"})
    data.wait(LONG_S)
    data.add_pilot_data(far)
    data.wait_replicas(2, LONG_S)
    text = words(data)
    assert text.index("EWR") < text.index(near.id) < text.index("JFK") < text.index(far.id)
    assert "<b>&amp;'" in text
    assert "300.0 kB" in text
    assert "300.0 kB of 1.0 MB" in words(near)
    bad = cds.submit_compute_unit({"executable": "/bin/false", "output_data": [{"out": ["*"]}]})
    bad.wait(LONG_S)
    text = words(cds)
    for said in ("1 Running", "1 Failed", pilot.id, near.id, "1 of 3 busy", bad.id, "exit status 1"):
        assert said in text
    assert "1 of 3 busy" in words(pcs)
    assert far.id in words(pds)
    assert (
        repr(cds)
        == f"<ComputeDataService {cds.id}: Running, 2 compute units (1 Running, 1 Failed), 1 data unit (1 Failed)>"
    )
    gate.open()
    (broken,) = bad.output_data.values()
    assert "Failed" in words(broken)
    assert bad.id in words(broken)
    pilot.cancel()
    assert "Canceled" in words(pilot)
    far.cancel()
    assert "Canceled" in words(far)


@pytest.mark.cluster
def test_a_pilot_that_failed_shows_the_end_of_its_log(pcs: PilotComputeService, tmp_path: Path) -> None:
    pilot = pcs.create_pilot({"service_url": "fork://localhost", "working_directory": str(tmp_path / "work")})
    pilot.wait_running(LONG_S)
    pilot._session.call("pilot_ended", id=pilot.id, code=3, log="first line\nthe disk is full")
    eventually(lambda: pilot.state == "Failed", "the pilot has failed")
    text = words(pilot)
    assert "ended with status 3" in text
    assert "the disk is full" in text
    assert "PilotLaunchError" in repr(pilot)


@pytest.mark.cluster
def test_credentials_are_in_no_repr(cds: ComputeDataService, pds: PilotDataService, tmp_path: Path) -> None:
    secret = "planted-secret-5b1c"
    store = pds.create_pilot({"service_url": f"file://{tmp_path / 'store'}", "storage_options": {"password": secret}})
    (tmp_path / "in").write_text("x")
    data = store.submit_data_unit({"file_urls": [str(tmp_path / "in")]})
    data.wait(LONG_S)
    for shown in (store, data, pds, cds):
        assert secret not in (shown._repr_html_() or "") + pretty(shown) + repr(shown)


def test_what_is_not_connected_starts_nothing() -> None:
    before = dict(Session._sessions)
    service = ComputeDataService()
    assert repr(service) == "<ComputeDataService: not connected yet>"
    assert "Not connected yet" in (service._repr_html_() or "")
    assert Session._sessions == before
    half = PilotCompute.__new__(PilotCompute)
    assert repr(half) == "<PilotCompute: not connected yet>"
    assert half._repr_html_() is not None


def test_without_jinja_there_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpilot.monitor import drawing

    drawing._template.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    decision = Decision("cu-1", None, "waits for a slot")
    assert decision._repr_html_() is None
    assert "waits for a slot" in pretty(decision)


@pytest.mark.cluster
def test_after_the_scheduler_is_lost(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "tcp://127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--no-dashboard", "--dashboard-address", "127.0.0.1:0"],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for_port(port, process)
        address = f"tcp://127.0.0.1:{port}"
        pcs, pds = PilotComputeService(address), PilotDataService(address)
        cds = ComputeDataService(coordination_url=address)
        cds.add_pilot_compute_service(pcs)
        cds.add_pilot_data_service(pds)
        store = pds.create_pilot({"service_url": f"file://{tmp_path / 'store'}"})
        work = {"number_of_processes": 1, "working_directory": str(tmp_path / "work")}
        pilot = pcs.create_pilot({"service_url": "fork://localhost", **work})
        (tmp_path / "in").write_text("x")
        data = store.submit_data_unit({"file_urls": [str(tmp_path / "in")], "name": "kept"})
        failed = cds.submit_compute_unit({"executable": "/bin/false"})
        failed.wait(LONG_S)
        data.wait(LONG_S)
        assert "exit status 1" in words(failed)
    finally:
        process.kill()
        process.wait()
    eventually(lambda: pcs._session.is_lost, "the loss is known")
    for shown in (cds, pcs, pds, store, pilot, data):
        text = words(shown)
        assert "The scheduler is lost" in text
        assert "Unknown" in text
    assert "Failed" in words(failed)
    with pytest.raises(ConnectionLostError):
        cds.units_frame()
    pilot.cancel()
    pcs._session.close()


# ---------------------------------------------------------------- cards alone


def test_bars_as_text() -> None:
    assert bar_text(Bar((Part(0.5, "busy", "2 busy"),), "2 of 4 busy", 4)) == "▮▮▯▯ 2 of 4 busy"
    assert bar_text(Bar((Part(0.5, "busy", "50 busy"),), "50 of 100 busy", 100)).startswith("█" * 12 + "░" * 12)
    assert bar_text(states_bar({"Failed": 1, "Done": 1200})) == "1,200 Done, 1 Failed"


def test_faults_tell_the_end_of_the_stream_apart() -> None:
    from dpilot import ExecutableError, PilotLaunchError

    error = ExecutableError("'/bin/x' ended with exit status 2; the end of stderr.txt:\nno", exit_code=2, stderr="no")
    assert fault_of(error) == ("ExecutableError: '/bin/x' ended with exit status 2", "", "no")
    launch = PilotLaunchError("pc-1 ended with status 1; the end of its log:\na\nb", log="a\nb")
    assert fault_of(launch) == ("PilotLaunchError: pc-1 ended with status 1", "", "a\nb")


# ---------------------------------------------------------------- in a browser

NBYTES = (4_300_000, 0, 1_200_000)
ROWS = (
    Row("pc-1f0c2a", "chosen", "", 0.0, 0.0045, 0.0, 0.0, NBYTES),
    Row("pc-77ab01", "possible", "", 0.4, 0.085, 0.0, 0.02, (0, 4_300_000, 0)),
    Row("pc-c3d9e4", "rejected", "datacenter LGA is not EWR"),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a card that has everything, and a decision."""
    card = Card("ComputeUnit", "cu-4f0e1d2c3b4a", "Failed", "align " + "a-very-long-name-" * 12, "A note.")
    card.fact("pilot", "pc-1f0c2a", "EWR/ewr-node1")
    card.bars += [
        ("slots", Bar((Part(0.5, "busy", "half"),), "16 of 32 busy", 32)),
        ("units", states_bar({"Done": 7, "Failed": 2})),
    ]
    card.map(
        ({"store": f"pd-{i}", "url": f"s3://bucket/{'long-' * i}", "site": (f"DC{i // 2}", f"m{i}")}, None)
        for i in range(6)
    )
    card.faults.append(fault_of(ValueError("x" * 400)))
    decision = Decision("cu-4f0e1d2c3b4a", "pc-1f0c2a", "its data and labels fit best, by 0.480 s", ROWS)
    path = tmp_path_factory.mktemp("page") / "page.html"
    html = f"{card_html(card)}{decision._repr_html_()}"
    path.write_text(
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>cards</title><body>{html}</body></html>'
    )
    return path


_COLOURS = """
const wanted = [".dp-kind", ".dp-head code", "dt", "th", ".dp-fault > p", "summary", ".dp-store small"];
const card = document.querySelector(".dpilot-card");
const paper = getComputedStyle(card).backgroundColor;
const texts = wanted.map(s => card.parentNode.querySelector(".dpilot-card " + s)).filter(Boolean);
return [paper, texts.map(e => getComputedStyle(e).color)];
"""


def luminance(colour: str) -> float:
    channels = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.cluster
@pytest.mark.parametrize("width", [1280, 500])
def test_cards_in_a_browser(page: Path, tmp_path: Path, width: int) -> None:
    with browser(tmp_path / "profile", width) as shown:
        papers = {}
        for theme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": theme}
            shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
            shown.get(page.as_uri())
            papers[theme], texts = shown.execute_script(_COLOURS)
            assert len(texts) >= 6
            assert min(contrast(papers[theme], colour) for colour in texts) >= 4.5
            assert shown.execute_script("return document.documentElement.scrollWidth <= innerWidth")
            assert len(shown.get_screenshot_as_png()) > 10_000
        assert luminance(papers["light"]) > 0.9
        assert luminance(papers["dark"]) < 0.1
        # JupyterLab's own theme counts for more than the system's.
        shown.execute_script("document.body.dataset.jpThemeLight = 'true'")
        assert shown.execute_script(_COLOURS)[0] == papers["light"]
