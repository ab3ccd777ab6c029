"""The notebooks run from a clean kernel, and show what is committed: none has stale outputs."""

from __future__ import annotations

import copy
import re
import socket
import struct
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from notebooks.gateway import Gateway
from notebooks.running import differences, execute, find, shown, source_of, tidy, told
from tests.services import missing, require

NOTEBOOKS = find()
MOST_BYTES = 300_000


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


# ---------------------------------------------------------------- the committed ones


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_whole(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.metadata.dpilot.source == source_of(notebook), "changed since it was run: `make notebooks`"
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert path.stat().st_size < MOST_BYTES
    assert not re.search(r"/(root|home|work|Users|usr/lib/python|tmp/tmp)\b", path.read_text())
    errors = [output.ename for cell in code for output in cell.outputs if output.output_type == "error"]
    assert errors == []


def test_each_shows_a_picture_but_the_one_of_errors() -> None:
    pictures = {path.name[:2]: path.read_text().count('"image/png"') for path in NOTEBOOKS}
    assert list(pictures) == ["01", "02", "03", "04", "05", "06"]
    assert all(count for name, count in pictures.items() if name != "06")


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_is_committed(path: Path) -> None:
    if path.name.startswith("03"):
        require("bwa", "samtools")
        if not Path("/usr/share/doc/bowtie2/examples/reads").is_dir():
            missing("the reads of Debian's package bowtie2-examples are not installed")
    found = differences(read(path), tidy(execute(path)))
    assert not found, "\n".join([*found, "run `make notebooks`, and look at what it changes"])


def test_a_reader_that_leaves_early_is_no_trouble_to_a_gateway(caplog: pytest.LogCaptureFixture) -> None:
    served = threading.Event()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):
                self.wfile.write(b"x" * 1_000_000)
            served.set()

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        gateway = Gateway("http://127.0.0.1:1", bandwidth=1e6, latency_s=0.1)
        with socket.create_connection(("127.0.0.1", urlsplit(gateway.environment["HTTP_PROXY"]).port)) as reader:
            reader.sendall(b"GET http://127.0.0.1:%d/ HTTP/1.0\r\n\r\n" % server.server_port)
            assert reader.recv(1) == b"x"
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # and resets it
        assert served.wait(10)
        time.sleep(0.3)  # what was on the line has arrived
        gateway.close()
        server.shutdown()
    assert caplog.records == []


# ---------------------------------------------------------------- the check itself


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    """A notebook that was run and tidied, as one that is committed."""
    path = tmp_path_factory.mktemp("notebooks") / "some.ipynb"
    code = [
        new_code_cell(
            "import sys, time, tempfile\nprint(tempfile.mkdtemp(), sys.prefix + '/', f'cu-{time.time_ns():012x}')"
        ),
        new_code_cell("print(2 + 2, 'slots', time.time(), 's')"),
        new_code_cell("time.time_ns()", metadata={"tags": ["varies"]}),
        new_code_cell("import missing_module", metadata={"tags": ["raises-exception"]}),
    ]
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Some"), *code]), path)
    before = path.read_bytes()
    notebook = tidy(execute(path))
    assert path.read_bytes() == before
    nbformat.write(notebook, path)
    return notebook


@pytest.mark.cluster
def test_what_varies_is_no_difference(run: NotebookNode, tmp_path: Path) -> None:
    path = tmp_path / "again.ipynb"
    nbformat.write(run, path)
    again = tidy(execute(path))
    assert again.cells[1].outputs != run.cells[1].outputs
    assert again.cells[3].outputs != run.cells[3].outputs
    assert differences(run, again) == []


@pytest.mark.cluster
def test_paths_of_this_machine_are_not_written_down(run: NotebookNode) -> None:
    assert run.cells[1].outputs[0].text.startswith("/tmp/notebook python/ cu-")


@pytest.mark.cluster
def test_a_changed_source_is_found(run: NotebookNode) -> None:
    changed = copy.deepcopy(run)
    changed.cells[2].source = "print(2 + 3, 'slots', time.time(), 's')"
    (line,) = differences(changed, run)
    assert "changed after it was run" in line


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("number", "change"),
    [
        (2, lambda cell: cell.outputs[0].update(text=cell.outputs[0].text.replace("4 slots", "5 slots"))),
        (2, lambda cell: cell.update(outputs=[])),
        (2, lambda cell: cell.outputs.append(new_output("display_data", {"image/png": "", "text/plain": "<Figure>"}))),
        (3, lambda cell: cell.update(outputs=[])),  # of what varies, the kind is looked at
        (4, lambda cell: cell.outputs[0].update(evalue="No module named 'another'")),
    ],
    ids=["text", "none", "picture", "kind", "error"],
)
def test_a_changed_output_is_found(run: NotebookNode, number: int, change: object) -> None:
    assert callable(change)
    changed = copy.deepcopy(run)
    change(changed.cells[number])
    assert differences(changed, run)[0].startswith(f"cell {number + 1} shows something else")


@pytest.mark.cluster
def test_what_a_cell_complains_of_is_told(run: NotebookNode) -> None:
    changed = copy.deepcopy(run)
    changed.cells[3].outputs.append(new_output("stream", name="stderr", text="a peer is gone"))
    found = differences(run, changed)
    assert found[0].startswith("cell 4 shows something else")
    assert found[-1].strip() == "a peer is gone"


@pytest.mark.cluster
def test_a_cell_that_fails_is_no_output(tmp_path: Path) -> None:
    path = tmp_path / "fails.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), path)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute(path)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cu-0123456789ab on pc-0123456789ab-0", "cu-aaaaaaaaaaaa on pc-bbbbbbbbbbbb-1"),
        ("waited 0.02 s, staged 3 s", "waited 11.5 s, staged 0.03 s"),
        ("tcp://127.0.0.1:4711", "tcp://127.0.0.1:815"),
        ("2026-11-23 07:56:00.864 began", "2027-01-01T00:00:00 began"),
        ("▮▯ 1 of 2 busy", "▯▯ 0 of 2 busy"),
    ],
)
def test_what_varies_in_a_text(one: str, other: str) -> None:
    assert told(one) == told(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("2.5 MB", "2.6 MB"), ("1 of 2 busy", "1 of 3 busy"), ("cu-0123456789ab", "du-0123456789ab"), ("Done", "Failed")],
)
def test_what_matters_in_a_text(one: str, other: str) -> None:
    assert told(one) != told(other)


def test_a_card_is_compared_by_its_words() -> None:
    def card(colour: str, word: str) -> NotebookNode:
        html = f"<style>a {{color: {colour}}}</style><div style='color:{colour}'><b>{word}</b> 2 MB</div>"
        return new_code_cell(outputs=[new_output("execute_result", {"text/html": html, "text/plain": word})])

    assert shown(card("red", "Done")) == shown(card("blue", "Done"))
    assert shown(card("red", "Done")) != shown(card("red", "Failed"))
