"""The dashboard's page in a real browser while units run at three sites: its figures are the API's, and it can be read.

With ``DPILOT_PICTURES=docs/pictures`` the pages are kept as pictures.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpilot import State
from dpilot.monitor.tables import nbytes_text
from dpilot.monitor.theme import THEMES
from dpilot.runtime.session import Session
from tests.browser import browser, faint_text, picture_of, show_in, text_of, unlabelled
from tests.helpers import LONG_S, Gate, eventually, reach
from tests.monitor.test_dashboard import SITES, Run, scheduler
from tests.units import hold

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run under way: every slot at every site is held."""
    directory = tmp_path_factory.mktemp("run")
    with scheduler() as (address, http):
        made, gate = Run(address, http, directory), Gate(directory / "gate")
        held = [
            made.cds.submit(hold, gate.path, name="hold", affinity_datacenter_label=site, affinity="require")
            for site in SITES * 3
        ]
        try:
            eventually(lambda: made.figures("summary")["slots"]["busy"] == 6, "all slots are seen busy")
            for unit in held[:3]:
                reach(unit, State.Running)
            yield made
        finally:
            gate.open()
            for unit in held:
                unit.wait(LONG_S)
            made.cds.cancel()
            made.pcs.cancel()
            made.pds.cancel()
            Session.join(address).close()


@pytest.mark.parametrize(("width", "theme"), list(itertools.product((1280, 700), THEMES)))
def test_the_page_shows_the_apis_figures(run: Run, tmp_path: Path, width: int, theme: str) -> None:
    with browser(tmp_path, width) as page:
        show_in(page, theme)
        page.get(f"{run.http}/dpilot")  # it sees by itself which theme the system has
        text = eventually(lambda: (text := text_of(page)).count("units done") and text, "the page is drawn")
        pieces = text.split("\n")
        summary, waiting = run.figures("summary"), run.figures("waiting")
        for number, label in (
            (f"{summary['units']['Running']:,}", "units running"),
            (f"{summary['units']['Pending']:,}", "units waiting"),
            (f"{summary['units']['Done']:,}", "units done"),
            (f"{summary['slots']['busy']} / {summary['slots']['total']}", "slots busy"),
            (f"{summary['replicas']:,}", "replicas"),
        ):
            assert pieces[pieces.index(label) - 1] == number
        assert (summary["units"]["Running"], summary["slots"]["busy"]) == (6, 6)
        assert f"{summary['units']['Failed']} failed" in text
        pilots = _section(page, "Pilots")
        for row in run.figures("pilots")["pilots"]:
            at = pilots.index(row["pilot"])
            assert f"{row['busy']} / {row['slots']}" in pilots[at : at + 8]
            assert str(row["done"]) in pilots[at : at + 8]
        matrix = _section(page, "Placement")
        for cell in run.figures("matrix")["cells"]:
            assert str(cell["runs"]) in matrix
            assert nbytes_text(cell["bytes"]) in matrix
        transfers = _section(page, "Transfers")
        for link in run.figures("transfers")["links"]:
            assert f"{link['source'] or '–'} → {link['target'] or '–'}" in transfers  # noqa: RUF001
            assert nbytes_text(link["bytes"]) in transfers
        for group in waiting["groups"]:
            assert group["reason"] in _section(page, "Waiting units")
        stored = _section(page, "Stores and data units")
        assert {row["data_unit"] for row in run.figures("data")["newest"]} <= set(stored)
        # Nothing sticks out at the side, nothing failed, and it can be read in this theme.
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        assert [line for line in page.get_log("browser") if line["level"] == "SEVERE"] == []
        background = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert background == "rgb({}, {}, {})".format(*bytes.fromhex(THEMES[theme]["page"][1:]))
        assert (faint_text(page), unlabelled(page)) == ([], [])
        _keep(page, f"dashboard-{theme}-{width}.png")


def _section(page: object, label: str) -> list[str]:
    return text_of(page, page.find_element("css selector", f"section[aria-label='{label}']")).split("\n")


def _keep(page: Any, name: str) -> None:
    directory = os.environ.get("DPILOT_PICTURES")
    if directory:
        Path(directory, name).write_bytes(picture_of(page))
