"""The code in ``docs/`` is run, and prints what the pages say; the reference is complete, the pictures are fresh."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import dpilot
from tests.services import S3, Sshd, Web, require

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
#: A block of code, and the output that is shown right after it.
_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
_MARK = "==== block ====\n"
#: Ids differ each time.
_ID = re.compile(r"\b(pcs|pc|pds|pd|cds|cu|du|tr)-[0-9a-f]{12}\b")


class Block(NamedTuple):
    """One block of Python, and what it should print; None: the page does not say."""

    code: str
    output: str | None


def blocks(page: str) -> list[Block]:
    """The code of a page. Blocks that another program runs are fenced as something else than python."""
    return [Block(code, output or None) for code, output in _BLOCK.findall(PAGES[page])]


#: Text of a page -> what it is where the tests run: servers and what is needed to reach them.
Words = dict[str, str]


def no_words(request: pytest.FixtureRequest, directory: Path) -> Words:
    return {}


def words_of_stores(request: pytest.FixtureRequest, directory: Path) -> Words:
    s3: S3 = request.getfixturevalue("s3")
    sshd: Sshd = request.getfixturevalue("sshd")
    web: Web = request.getfixturevalue("web")
    (web.directory / "planets.csv").write_text("name,moons\nEarth,1\nMars,2\n")
    options = {key: value for key, value in sshd.storage_options.items() if key != "client_keys"}
    return {
        "s3://my-bucket": f"s3://{s3.place()}",
        '"https://s3.example.org"': repr(s3.endpoint_url),
        'os.environ["S3_KEY"]': repr(s3.key),
        'os.environ["S3_SECRET"]': repr(s3.secret),
        "sftp://lab.example.org/data": sshd.url(directory / "lab"),
        '{"username": "ada"}': repr(options),
        '"/home/ada/.ssh/id_ed25519"': repr(str(sshd.userkey)),
        "https://data.example.org": web.url,
    }


def words_of_launcher(request: pytest.FixtureRequest, directory: Path) -> Words:
    require("ssh")
    sshd: Sshd = request.getfixturevalue("sshd")
    options = ["BatchMode=yes", f"Port={sshd.port}", f"UserKnownHostsFile={sshd.directory / 'known_hosts'}"]
    return {
        '"-o", "BatchMode=yes"': ", ".join(
            f'"-o", {option!r}' for option in [*options, f"IdentityFile={sshd.userkey}"]
        ),
        "lab.example.org": "127.0.0.1",
        '"python3"': repr(sys.executable),
        "/tmp/dpilot-work": str(directory / "work"),
    }


def words_of_tls(request: pytest.FixtureRequest, directory: Path) -> Words:
    from tests.test_peer import make_certificates

    files = make_certificates(directory)
    names = {"ca-file": "ca.pem", "cert": "mine.pem", "key": "mine-key.pem"}
    return {f'"/home/ada/tls/{name}"': repr(files[part]) for part, name in names.items()}


WORDS: dict[str, Callable[[pytest.FixtureRequest, Path], Words]] = {
    "howto/launcher.md": words_of_launcher,
    "howto/stores.md": words_of_stores,
    "howto/tls.md": words_of_tls,
}

#: What pages that are no recipes have before their first block, to begin in the middle of something.
BEGINNINGS = {
    "dashboard.md": "from dpilot import PilotComputeService\n\nservice = PilotComputeService()\n",
    "report.md": "from dpilot import ComputeDataService\n\ncds = ComputeDataService()\n",
    "notebook.md": "from dpilot import ComputeDataService\n\ncds = ComputeDataService()\n",
}


@pytest.mark.cluster
@pytest.mark.s3
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_the_code_of_a_page_runs_and_prints_what_it_says(
    page: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    words = WORDS.get(page, no_words)(request, tmp_path)
    shown = blocks(page)
    script = BEGINNINGS.get(page, "") + "\n".join(
        f"print({_MARK!r}, end='', flush=True)\n{block.code}" for block in shown
    )
    for word, value in words.items():
        assert word in script, f"{page} has no {word}"
        script = script.replace(word, value)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "page.py").write_text(script)
    environment = {**os.environ, "COLUMNS": "120", "DASK_DPILOT__SCHEDULER__DASHBOARD_ADDRESS": "127.0.0.1:0"}
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path / "run",
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    printed = done.stdout.split(_MARK)[1:]
    checker, options = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for block, output in zip(shown, printed, strict=True):
        want, output = (_ID.sub(r"\1-ID", text) for text in (block.output or "", output))
        assert checker.check_output(want, output, options), f"{block.code}\nshown:\n{want}\nprinted:\n{output}"


def test_every_public_name_is_in_the_reference() -> None:
    reference = "".join(text for page, text in PAGES.items() if page.startswith("reference/"))
    named = set(re.findall(r"^(?:\.\. (?:auto)?\w+::|          ) +([A-Za-z]\w+)$", reference, re.MULTILINE))
    assert sorted(set(dpilot.__all__) - named) == []


def test_every_page_is_in_the_table_of_contents() -> None:
    def listed(page: str) -> set[str]:
        found = {page}
        for tree in re.findall(r"^```\{toctree\}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE):
            for entry in re.findall(r"^[\w./-]+$", tree, re.MULTILINE):
                found |= listed(os.path.normpath(f"{os.path.dirname(page)}/{entry}.md").lstrip("/"))  # noqa: PTH120
        return found

    assert sorted(set(PAGES) - listed("index.md")) == []


@pytest.mark.parametrize("page", PAGES)
def test_links_between_files_lead_somewhere(page: str) -> None:
    """As they are read in the repository; the site's own links Sphinx checks."""
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)(?:#[^)]*)?\)", PAGES[page]):
        assert (DOCS / page).parent.joinpath(target).exists(), target


def test_the_pictures_are_as_the_code_is() -> None:
    """``python docs/draw`` makes them anew."""
    done = subprocess.run([sys.executable, "docs/draw", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
