"""How notebooks are run, written down and compared.

What a run shows is never the same twice: ids, times and ports differ. So two runs are compared by what is left when
these are replaced (:func:`told`). The outputs of a cell with the tag ``varies`` are compared by their kinds only.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
import sys
import tempfile
from difflib import unified_diff
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

__all__ = ["DIRECTORY", "differences", "execute", "find", "shown", "source_of", "tidy", "told"]

DIRECTORY = Path(__file__).parent
_TIMEOUT_S = 120
#: No dashboard: its port may be taken, and then its address is another in each run.
_ENVIRONMENT = {"DASK_DPILOT__SCHEDULER__DASHBOARD_ADDRESS": "None"}
#: A widget is for those who run the notebook; whoever reads it has the card in the same output.
_LIVE = "application/vnd.jupyter.widget-view+json"


def find(*names: str) -> list[Path]:
    """The notebooks whose names begin with one of `names`; all without any."""
    found = sorted(path for path in DIRECTORY.glob("*.ipynb") if path.name.startswith(names or ("",)))
    if not found:
        raise SystemExit(f"no notebook's name begins with {' or '.join(names)}")
    return found


def execute(path: Path) -> NotebookNode:
    """Run a notebook from a clean kernel.

    Parameters
    ----------
    path : Path

    Returns
    -------
    NotebookNode
        The notebook with its outputs; the file is as it was.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails that has no tag ``raises-exception``.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=_TIMEOUT_S,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        store_widget_state=False,
    )
    client.execute(env={**os.environ, **_ENVIRONMENT})
    return notebook


# ---------------------------------------------------------------- writing down


def tidy(notebook: NotebookNode) -> NotebookNode:
    """A notebook as it is committed: without this machine's paths, widgets and versions, and with its source's hash.

    Parameters
    ----------
    notebook : NotebookNode
        Changed in place.

    Returns
    -------
    NotebookNode
    """
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(_LIVE, None)
            for place, key in _texts(output):
                place[key] = _without_paths(place[key])
        if "outputs" in cell:
            cell.outputs = _joined(cell.outputs)
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        dpilot={"source": source_of(notebook)},
    )
    return notebook


def source_of(notebook: NotebookNode) -> str:
    """A hash of the notebook's code: its outputs are of that code."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def _texts(output: NotebookNode) -> list[tuple[Any, Any]]:
    """Where an output has text: containers and keys."""
    places: list[tuple[Any, Any]] = [(output, key) for key in ("text", "evalue") if key in output]
    places += [(output.traceback, number) for number in range(len(output.get("traceback", [])))]
    places += [(output.data, kind) for kind in output.get("data", {}) if kind.startswith("text/")]
    return places


#: Where this machine has things -> what is written instead; longer paths first, as they may lie in each other.
_PLACES = sorted(
    {
        str(DIRECTORY.parent): "dpilot",
        sys.prefix: "python",
        sys.base_prefix: "python",
        str(Path.home()): "~",
    }.items(),
    key=lambda item: -len(item[0]),
)


def _without_paths(text: str) -> str:
    text = re.sub(rf"{re.escape(tempfile.gettempdir())}/tmp\w{{8}}", "/tmp/notebook", text)
    for path, name in _PLACES:
        text = text.replace(f"{path}/", f"{name}/")
    return text


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs in which what was written to one stream is one text, however it came in pieces."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last is not None and output.output_type == "stream" == last.output_type and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    return joined


# ---------------------------------------------------------------- comparing

#: What varies from run to run -> what stands for it.
_VARYING = [
    (re.compile(r"\x1b\[[0-9;]*m"), ""),
    (re.compile(r"\b(pcs|pds|cds|pc|pd|cu|du|tr)-[0-9a-f]{6,}(-\d+)?\b"), r"\1-ID"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?([+-]\d\d:\d\d)?"), "WHEN"),
    (re.compile(r"\b(127\.\d+\.\d+\.\d+|localhost):\d+"), r"\1:PORT"),
    (re.compile(r"\b\d[\d,]*(\.\d+)?(e[+-]?\d+)?\s?(ns|us|µs|μs|ms|s|min|seconds?|[kMG]?B/s)\b"), "TIME"),
    (re.compile(r"\b\d+ of (\d+) busy"), r"N of \1 busy"),
    (re.compile(r"[▮▯]+ "), ""),
    (re.compile(r"\b(pid|process) \d+"), r"\1 PID"),
    (re.compile(r"\bat 0x[0-9a-f]+"), "at 0xADDRESS"),
    (re.compile(r"/tmp/ipykernel_\d+/\d+"), "CELL"),
    (re.compile(r"(python/lib/python3\.)\d+(.*line )\d+"), r"\1N\2N"),
    (re.compile(r"[ \t]+"), " "),
]


def told(text: str) -> str:
    """A text with what varies from run to run replaced: ids, times, rates, ports."""
    for pattern, stand_in in _VARYING:
        text = pattern.sub(stand_in, text)
    return "\n".join(line.strip() for line in text.splitlines())


def _from_html(text: str) -> str:
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", text)))


def shown(cell: NotebookNode) -> list[str]:
    """What a cell shows, as lines that are the same in every run.

    Parameters
    ----------
    cell : NotebookNode

    Returns
    -------
    list of str
        Of an error the kind and message, not the traceback: that is of lines in other files. Of a picture, that there
        is one.
    """
    if "varies" in cell.metadata.get("tags", []):
        return sorted({_kind(output) for output in _joined(cell.get("outputs", []))})
    lines: list[str] = []
    for output in _joined(cell.get("outputs", [])):
        lines.append(f"[{_kind(output)}]")
        if output.output_type == "stream":
            lines += told(output.text).splitlines()
        elif output.output_type == "error":
            lines += told(f"{output.ename}: {output.evalue}").splitlines()
        for kind, data in sorted(output.get("data", {}).items()):
            if kind == "text/html":
                lines += told(_from_html(data)).splitlines()
            elif kind.startswith("text/"):
                lines += told(data).splitlines()
    return lines


def _kind(output: NotebookNode) -> str:
    kinds = sorted(kind for kind in output.get("data", {}) if kind != _LIVE)
    return " ".join([output.output_type, *([output.name] if "name" in output else kinds)])


def _complaints(old: NotebookNode, new: NotebookNode) -> list[str]:
    """What a cell wrote to stderr now, if it wrote nothing before: of a cell that varies, nothing else tells."""
    before, after = ([o.text for o in cell.get("outputs", []) if o.get("name") == "stderr"] for cell in (old, new))
    return "".join(after).splitlines() if not before else []


def differences(committed: NotebookNode, fresh: NotebookNode) -> list[str]:
    """What tells that a committed notebook is stale.

    Parameters
    ----------
    committed, fresh : NotebookNode
        The latter has just been run, and tidied.

    Returns
    -------
    list of str
        Lines to read; none if nothing that matters has changed.
    """
    found = []
    if committed.metadata.get("dpilot", {}).get("source") != source_of(committed):
        found.append("its code was changed after it was run: run `make notebooks`")
    for number, (old, new) in enumerate(zip(committed.cells, fresh.cells, strict=True), 1):
        before, after = shown(old), shown(new)
        if before != after:
            diff = list(unified_diff(before, after, "committed", "run now", lineterm="", n=0))
            found += [
                f"cell {number} shows something else:",
                *(f"    {line}" for line in [*diff, *_complaints(old, new)]),
            ]
    return found
