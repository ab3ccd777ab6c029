"""Finding a launcher by its scheme, and what it renders: nothing is started here."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from dpilot.errors import DescriptionError, PilotLaunchError
from dpilot.pilots.launcher import Command, LaunchRequest, launcher_for, launcher_schemes
from dpilot.pilots.local import LocalLauncher


def request(**changes: object) -> LaunchRequest:
    fields = {"pilot": "pc-1", "scheduler": "tcp://127.0.0.1:8786", "slots": 2, "working_directory": "/data/my work"}
    return LaunchRequest(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("slots", "threads", "workers", "last"), [(1, 1, 1, 1), (4, 1, 4, 1), (4, 2, 2, 2), (5, 2, 3, 1), (3, 8, 1, 3)]
)
def test_slots_are_split_into_workers(slots: int, threads: int, workers: int, last: int) -> None:
    split = request(slots=slots, threads_per_worker=threads)
    assert (split.workers, split.last_threads) == (workers, last)


@pytest.mark.parametrize(
    "url",
    ["fork://localhost", "fork://localhost/", "local://", "local://127.0.0.1", "FORK://localhost", "fork://[::1]"],
)
def test_this_machine_has_a_launcher(url: str) -> None:
    assert isinstance(launcher_for(url), LocalLauncher)


def test_this_machine_may_be_called_by_its_name() -> None:
    assert isinstance(launcher_for(f"fork://{socket.gethostname()}"), LocalLauncher)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ssh://login.example.org", ["ssh://", "later release", "fork://"]),
        ("pbs+ssh://login.example.org", ["pbs+ssh://", "later release", "local://"]),
        ("slurm://localhost", ["slurm://", "later release"]),
        ("gram://example.org", ["gram", "dpilot.launchers", "fork://"]),
        ("ec2+ssh://example.org", ["ec2", "dpilot.launchers"]),
        ("frok://localhost", ["unknown scheme 'frok'", "fork://, local://"]),
        ("localhost", ["no scheme", "fork://localhost"]),
        ("", ["no scheme"]),
        ("fork://[::1", ["malformed"]),
        ("fork://elsewhere.example.org", ["'elsewhere.example.org'", "this machine", "fork://localhost"]),
        ("fork://localhost:22", ["more than a host"]),
        ("fork://me@localhost", ["more than a host"]),
        ("fork://localhost/data", ["more than a host"]),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(url: str, words: list[str]) -> None:
    with pytest.raises(DescriptionError) as caught:
        launcher_for(url)
    assert (caught.value.field, caught.value.value) == ("service_url", url)
    for word in ["service_url", repr(url), *words]:
        assert word in str(caught.value)


def install_launcher(site: Path, value: str) -> None:
    """Make `site` hold an installed package with a launcher for cloud://."""
    information = site / "dpilot_cloud-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: dpilot-cloud\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[dpilot.launchers]\ncloud = {value}\n")
    (site / "dpilot_cloud.py").write_text(
        "from dpilot.pilots.launcher import Command, Launcher\n"
        "class CloudLauncher(Launcher):\n"
        "    def render(self, request):\n"
        "        return Command((self.url.hostname, request.pilot))\n"
        "    def submit(self, request):\n"
        "        raise NotImplementedError\n"
    )


def test_another_package_adds_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_launcher(tmp_path, "dpilot_cloud:CloudLauncher")
    monkeypatch.syspath_prepend(tmp_path)
    assert launcher_schemes() == ["cloud", "fork", "local"]
    assert launcher_for("cloud://somewhere").render(request()) == Command(("somewhere", "pc-1"))


def test_a_launcher_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_launcher(tmp_path, "dpilot_cloud:Missing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PilotLaunchError, match=r"cloud:// \(dpilot_cloud:Missing\) cannot be imported"):
        launcher_for("cloud://somewhere")


def test_the_command_says_all_that_was_requested() -> None:
    command = launcher_for("fork://localhost").render(
        request(
            slots=5,
            threads_per_worker=2,
            memory_nbytes=4_000_000_000,
            tags=("pilot:pc-1", "-odd label"),
            preload=("dpilot.errors",),
            environment={"A": "1"},
            start_timeout_s=7.5,
            grace_s=2,
        )
    )
    words = command.arguments
    assert words[:2] == (sys.executable, "-P")
    assert Path(words[2]).name == "agent.py"
    options = (
        "--scheduler tcp://127.0.0.1:8786 --pilot pc-1 --workers 3 --threads 2 --last-threads 1 --working-directory"
    )
    assert words[3:16] == (*options.split(), "/data/my work", "--start-timeout", "7.5")[:13]
    assert " ".join(words).endswith(" ".join(f"--path={Path(entry).absolute()}" for entry in sys.path))
    for word in ["--grace", "2", "--memory-limit", "4000000000", "--tag=pilot:pc-1", "--tag=-odd label"]:
        assert word in words
    assert "--preload=dpilot.errors" in words
    assert command.environment == {"A": "1"}


@pytest.mark.parametrize("name", ["file/below", "file"])
def test_a_working_directory_that_cannot_be_made_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("not a directory")
    directory = tmp_path / name
    with pytest.raises(PilotLaunchError) as caught:
        launcher_for("fork://localhost").submit(request(working_directory=str(directory)))
    assert str(directory) in str(caught.value)
    assert "name a directory that you may write to" in str(caught.value)


def test_a_working_directory_that_is_not_writable_is_refused() -> None:
    # Not even root may make files there.
    with pytest.raises(PilotLaunchError, match=r"working_directory '/proc/.*' of pilot pc-1 cannot be used"):
        launcher_for("fork://localhost").submit(request(working_directory="/proc/dpilot"))
