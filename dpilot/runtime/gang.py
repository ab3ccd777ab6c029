"""An MPI unit and the workers that it runs on, on one host or several: its gang.

The unit's task runs at the first worker, the *head*. There runs ``mpirun`` (MPICH's, hydra), with a machine file that
says how many ranks each host has. For each further host it starts what ought to be ssh; it is given
:mod:`~dpilot.runtime.proxy_launcher`, which has the head ask a worker of the gang at that host to start hydra's proxy.
So it needs no sshd and no batch system, and works wherever Dask's workers reach each other.

The head holds a connection to each such worker, its *member*, from before the unit's inputs are staged until all has
ended there. If either end goes, the other one notices at once: a member whose head is gone kills what it has started; a
head that has lost a member ends the unit's attempt.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from distributed import Worker
from distributed.comm.core import Comm, connect

from dpilot import config
from dpilot.errors import ExecutableError
from dpilot.placement import Share
from dpilot.runtime import adapter, proxy_launcher
from dpilot.runtime.wire import value_of
from dpilot.runtime.work import UnitTask

__all__ = ["Gang", "Part", "host_of"]

#: The longest path of a directory in which a socket can be made, with some room.
_LONGEST = 80


def host_of(address: str) -> str:
    """The host in a worker's contact address."""
    return urlsplit(address).hostname or "localhost"


class Part(NamedTuple):
    """What a member is told of the unit.

    Parameters
    ----------
    task : UnitTask
    token : str
        Names the attempt.
    marker : str
        A directory that the head has made in its working directory: who sees it shares that directory.
    leads : bool
        Whether the member is the first of its host: it has the files, and starts the proxy.
    gpus : tuple of int
        Numbers of the devices that are the unit's.
    """

    task: UnitTask
    token: str
    marker: str
    leads: bool
    gpus: tuple[int, ...]


class _Member:
    """One of the other workers of a gang, as its head sees it."""

    def __init__(self, share: Share, leads: bool) -> None:
        self.share = share
        self.host = host_of(share.worker)
        self.leads = leads
        self.gpus: tuple[str, ...] = ()  # the names of its devices
        self.comm: Comm | None = None
        self.end: asyncio.Task[Any] | None = None  # once it is ready: what it says at its end
        self._is_stopped = False

    async def stop(self) -> None:
        """Have it end what it has started, if it has not."""
        if self.comm is not None and self.end is not None and not self.end.done() and not self._is_stopped:
            self._is_stopped = True
            with suppress(OSError):
                await self.comm.write({"what": "stop"})


class Gang:
    """A unit's gang, at its head.

    Parameters
    ----------
    task : UnitTask
    shares : sequence of Share
        What the unit holds of each worker, the head's first.
    worker : Worker
        The head.
    directory : Path
        The unit's working directory.
    gpus : tuple of str
        Names of the head's devices that are the unit's.
    on_lost : callable
        Called, in the worker's event loop, when a member is lost.
    """

    def __init__(
        self,
        task: UnitTask,
        shares: Sequence[Share],
        worker: Worker,
        directory: Path,
        gpus: tuple[str, ...],
        on_lost: Callable[[], None],
    ) -> None:
        self.task = task
        self.token = uuid.uuid4().hex
        self.lost: str | None = None  # address of a member that is gone
        self._worker = worker
        self._gpus = gpus
        self._on_lost = on_lost
        self._shares = _by_host(shares)
        self._head = host_of(shares[0].worker)
        leaders = {host: held[0].worker for host, held in self._shares.items() if host != self._head}
        self._members = {
            share.worker: _Member(share, share.worker == leaders.get(host_of(share.worker)))
            for share in shares[1:]
            if share.gpus or share.worker in leaders.values()
        }
        self._leaders = {host: self._members[address] for host, address in leaders.items()}
        self._files = directory / f".dpilot-mpi-{self.token[:8]}"
        self._files.mkdir()
        self._litter = [self._files]
        self._socket = ""
        self._server: asyncio.Server | None = None
        self._is_closing = False
        self._ready: Future[None] = adapter.in_loop(worker, self._assemble())

    # ---------------------------------------------------------------- before

    async def _assemble(self) -> None:
        """Have every member get ready: its files, and the names of its devices."""
        joining = [asyncio.ensure_future(self._join(member)) for member in self._members.values()]
        try:
            await asyncio.gather(*joining)
        finally:
            for task in joining:
                task.cancel()

    async def _join(self, member: _Member) -> None:
        share = member.share
        part = Part(self.task, self.token, self._files.name, member.leads, share.gpus)
        try:
            timeout = config.seconds("scheduler.connect-timeout")
            member.comm = await connect(share.worker, timeout=timeout, **adapter.connection_args(self._worker))
            await member.comm.write({"op": adapter.GANG, "part": adapter.Sealed.of(part)})
            member.gpus = value_of(await member.comm.read())
        except OSError:
            self._lose(member)
            raise
        member.end = asyncio.ensure_future(self._follow(member, member.comm))

    async def _follow(self, member: _Member, comm: Comm) -> Any:
        """What a member says at its end: the proxy's exit status, and the end of its error stream."""
        try:
            return value_of(await comm.read())
        except OSError:
            self._lose(member)
            raise
        finally:
            comm.abort()

    def _lose(self, member: _Member) -> None:
        if not self._is_closing:
            self.lost = self.lost or member.share.worker
            self._on_lost()

    def abandon(self) -> None:
        """The unit was canceled: wait for no member to get ready (in the worker's event loop)."""
        self._ready.cancel()

    def wait(self) -> None:
        """Wait until every member is ready.

        Raises
        ------
        OSError, CancelledError
            If one was lost, or the unit was canceled.
        PilotError
            What went wrong at one.
        """
        self._ready.result()

    # ---------------------------------------------------------------- mpirun

    def command(self, program: list[str], variables: Mapping[str, str]) -> list[str]:
        """The command that starts the ranks.

        Parameters
        ----------
        program : list of str
            The program's path and its arguments.
        variables : mapping of str to str
            The environment.

        Raises
        ------
        ExecutableError
        """
        mpirun = shutil.which("mpirun", path=variables.get("PATH"))
        if mpirun is None:
            raise ExecutableError(
                "mpirun was not found on the PATH of the pilot; install MPICH there (Debian: apt-get install mpich), "
                "or name its directory in the pilot's environment"
            )
        if not _is_hydra(mpirun):
            if self._leaders:
                raise ExecutableError(
                    f"{mpirun} is not MPICH's (hydra), which is needed for ranks on several hosts; put MPICH's first "
                    "on the PATH of the pilot, or ask for no more slots than one host has"
                )
            return [mpirun, "-n", str(self.task.request.slots), *program]
        if ":" in program[1:]:
            raise ExecutableError('an argument that is just ":" would mean another program to mpirun; write another')
        machines = self._files / "machines"
        counts = {host: sum(share.slots for share in shares) for host, shares in self._shares.items()}
        machines.write_text("".join(f"{host}:{slots}\n" for host, slots in counts.items()))
        options = ["-f", str(machines), "-localhost", self._head]
        if self._leaders:
            options += ["-launcher", "ssh", "-launcher-exec", str(self._write_launcher())]
        else:
            options += ["-launcher", "fork"]
        if not self.task.request.gpus:
            return [mpirun, *options, "-n", str(self.task.request.slots), *program]
        # Each worker's ranks see the devices that the unit has there.
        blocks: list[str] = []
        for shares in self._shares.values():
            for share in shares:
                member = self._members.get(share.worker)
                gpus = self._gpus if share is self._shares[self._head][0] else member.gpus if member is not None else ()
                blocks += [":", "-n", str(share.slots), "-env", "CUDA_VISIBLE_DEVICES", ",".join(gpus), *program]
        return [mpirun, *options, *blocks[1:]]

    def _write_launcher(self) -> Path:
        # The path of a socket must be short. What is executed must not be where a system forbids that, as for /tmp.
        directory = adapter.scratch_of(self._worker)
        if len(directory) > _LONGEST:
            directory = tempfile.mkdtemp(prefix="dpilot-")
            self._litter.append(Path(directory))
        self._socket = f"{directory}/{self.token[:16]}"
        adapter.in_loop(self._worker, self._listen()).result()
        words = (sys.executable, "-I", "-S", str(Path(proxy_launcher.__file__).absolute()), self._socket)
        path = self._files / "launch"
        path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        path.chmod(0o700)
        return path

    async def _listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._launch, self._socket)

    async def _launch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Mpirun wants its proxy at a host."""
        gone: asyncio.Task[bytes] | None = None
        code, text = 255, ""
        try:
            request = json.loads(await reader.readline())
            gone = asyncio.ensure_future(reader.read())  # mpirun is
            member = self._leaders[request["host"]]
            assert member.comm is not None
            assert member.end is not None
            await member.comm.write({"what": "start", "command": shlex.split(" ".join(request["command"]))})
            await asyncio.wait({member.end, gone}, return_when=asyncio.FIRST_COMPLETED)
            await member.stop()
            code, text = await member.end
            writer.write(json.dumps({"code": code, "text": text}).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError, LookupError):  # the member is lost, or mpirun is gone
            self._on_lost()
        finally:
            if gone is not None:
                gone.cancel()
            writer.close()

    # ---------------------------------------------------------------- afterwards

    def close(self) -> list[Exception]:
        """Wait until nothing of the unit is left at any member; what went wrong there."""
        failures = adapter.in_loop(self._worker, self._close()).result()
        if self._socket:
            Path(self._socket).unlink(missing_ok=True)
        for directory in self._litter:
            shutil.rmtree(directory, ignore_errors=True)
        return failures

    async def _close(self) -> list[Exception]:
        self._is_closing = True
        self._ready.cancel()
        failures = []
        for member in self._members.values():
            await member.stop()
        for member in self._members.values():
            if member.end is not None:
                try:
                    await member.end
                except Exception as error:
                    failures.append(error)
            elif member.comm is not None:
                member.comm.abort()
        if self._server is not None:
            self._server.close()
        return failures


def _by_host(shares: Sequence[Share]) -> dict[str, list[Share]]:
    """What the unit holds at which host, the first one's first."""
    hosts: dict[str, list[Share]] = {}
    for share in shares:
        hosts.setdefault(host_of(share.worker), []).append(share)
    return hosts


@cache
def _is_hydra(mpirun: str) -> bool:
    with suppress(OSError):
        return "HYDRA" in subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
    return False
