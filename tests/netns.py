"""Machines on this machine: network namespaces on one bridge, each with a directory that the others do not see.

A :class:`Network` makes sites. Pilots with the service URL ``netns://SITE`` run at a site: in its network namespace,
and in a mount namespace of their own in which `Network.data` is the site's directory. Every other process, that of the
tests included, finds another directory at the same path. Those with ``netns://A+B`` run at two sites, with half of the
slots at each; with ``netns://A+B/alone`` neither sees the processes of the other.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import SplitResult

import pytest

from dpilot.errors import PilotLaunchError
from dpilot.pilots.launcher import Command, Launcher, LaunchRequest, register_launcher
from dpilot.pilots.local import LocalLauncher
from dpilot.runtime.session import Session
from tests.helpers import eventually
from tests.services import missing, require

#: Mounts one directory over another for what follows, which no other process sees.
_AT_SITE = 'mount --make-rprivate / && mount --bind "$1" "$2" && shift 2 && exec "$@"'

_ALONE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


class Network:
    """A bridge of this machine, and sites at it.

    Parameters
    ----------
    directory : Path
        What all sites see, as machines see a shared file system.
    """

    current: Network | None = None

    def __init__(self, directory: Path) -> None:
        token = secrets.token_hex(3)
        self.directory = directory
        self.data = directory / "data"
        self.data.mkdir()
        self.bridge = f"dp{token}"
        # 198.18.0.0/15 is for such benches, and nobody's network.
        self._subnet = f"198.18.{int(token[:2], 16)}"
        self.address = f"{self._subnet}.1"
        self.sites: dict[str, Path] = {}
        self.schedulers: list[str] = []
        self._schedulers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Network:
        _ip("link", "add", self.bridge, "type", "bridge")
        try:
            _ip("addr", "add", f"{self.address}/24", "dev", self.bridge)
            _ip("link", "set", self.bridge, "up")
        except BaseException:
            self.close()
            raise
        Network.current = self
        return self

    def __exit__(self, *_: object) -> None:
        Network.current = None
        self.close()

    def namespace(self, site: str) -> str:
        return f"{self.bridge}-{site}"

    def add_site(self, name: str) -> Path:
        """A new machine; returns where the tests find what the machine has at `data`."""
        number = len(self.sites) + 2
        namespace, outer, inner = self.namespace(name), f"{self.bridge}v{number}", "eth0"
        self.sites[name] = directory = self.directory / f"site-{name}"
        directory.mkdir()
        _ip("netns", "add", namespace)
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", namespace)
        _ip("link", "set", outer, "master", self.bridge, "up")
        for arguments in (("link", "set", "lo", "up"), ("link", "set", inner, "up")):
            _ip("-n", namespace, *arguments)
        _ip("-n", namespace, "addr", "add", f"{self._subnet}.{number}/24", "dev", inner)
        return directory

    def at(self, site: str, *command: str) -> tuple[str, ...]:
        """The command that runs another one at a site."""
        paths = (str(self.sites[site]), str(self.data))
        return (
            "ip",
            "netns",
            "exec",
            self.namespace(site),
            "unshare",
            "-m",
            "sh",
            "-c",
            _AT_SITE,
            "sh",
            *paths,
            *command,
        )

    def scheduler(self, *options: str, protocol: str = "tcp", **environment: str) -> str:
        """Start a Dask scheduler which all sites reach; returns its address."""
        file = self.directory / f"scheduler-{len(self._schedulers)}.json"
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", f"{protocol}://{self.address}"]
        command += ["--port", "0", "--no-dashboard", "--no-show", "--scheduler-file", str(file), *options]
        with file.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environment})
        self._schedulers.append(process)
        written = eventually(lambda: file.exists() and file.read_text(), "a scheduler")
        self.schedulers.append(str(json.loads(written)["address"]))
        return self.schedulers[-1]

    def close(self) -> None:
        for process in self._schedulers:
            process.kill()
            process.wait()
        for site in self.sites:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", self.namespace(site))  # with its end of the cable, and so the other one
        _ip("link", "delete", self.bridge)


class SiteLauncher(LocalLauncher):
    """Starts pilots at a site of the current network."""

    def __init__(self, url: SplitResult) -> None:
        Launcher.__init__(self, url)

    def render(self, request: LaunchRequest) -> Command:
        network = Network.current
        if network is None:
            raise PilotLaunchError("there is no network now")
        sites = (self.url.hostname or "").split("+")
        if len(sites) == 1:
            command = super().render(request)
            return Command(network.at(sites[0], *command.arguments), command.environment)
        agents = []
        for site in sites:
            share = replace(request, pilot=f"{request.pilot}-{site}", slots=request.slots // len(sites))
            command = super().render(share)
            alone = _ALONE if self.url.path == "/alone" else ()
            agents.append(shlex.join(network.at(site, *alone, *command.arguments)))
        script = "exec 3<&0; " + " ".join(f"{agent} <&3 &" for agent in agents) + " wait"
        return Command(("sh", "-c", script), command.environment)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def two_sites(directory: Path) -> Iterator[Network]:
    """Two machines, ``a`` and ``b``, that see neither each other's `data` nor this machine's."""
    require("ip", "unshare", "mount")
    if os.geteuid() != 0:
        missing("network namespaces are for root only")
    # Where pilots run is not below what is mounted over.
    try:
        entered = Network(directory).__enter__()
    except subprocess.CalledProcessError as error:
        missing(f"no network can be made here: {error.stderr.decode().strip()}")
    register_launcher("netns", SiteLauncher)
    try:
        entered.add_site("a")
        entered.add_site("b")
        yield entered
    finally:
        for address, session in list(Session._sessions.items()):
            if f"//{entered.address}:" in address:
                session.close()
        entered.__exit__()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """Two machines, ``a`` and ``b``, for one test."""
    with two_sites(tmp_path) as network:
        yield network
