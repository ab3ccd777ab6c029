"""The part that a worker has in an MPI unit which runs at another one; see :mod:`dpilot.runtime.gang`."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import PurePath
from typing import Any, Protocol, TypeVar

from distributed import Worker
from distributed.comm.core import Comm
from distributed.core import Status

from dpilot.errors import ExecutableError, PilotError
from dpilot.runtime import adapter
from dpilot.runtime.gang import Part, host_of
from dpilot.runtime.process import MARK, RunningProgram
from dpilot.runtime.staging import Attempt, Staging
from dpilot.runtime.wire import bad, good
from dpilot.runtime.work import Program

__all__ = ["Membership"]

_T = TypeVar("_T")

#: How many of the last lines of the proxy's error stream the head shows.
_LINES = 20


class Member(Attempt, Protocol):
    """The attempt of a unit, as far as it concerns this worker."""

    held: ExitStack

    def cancel(self, grace_s: float | None = None) -> None:
        """Stop it."""

    def shares(self, marker: str) -> bool:
        """Whether the head's working directory, in which it has made `marker`, is seen here."""

    def gpus(self) -> tuple[str, ...]:
        """Names of the devices that are the unit's here."""

    def start(self, program: Program, environment: Mapping[str, str]) -> RunningProgram:
        """Start a program."""


class Membership:
    """One worker's part, from when the head asks for it until all has ended here.

    Parameters
    ----------
    part : Part
    run : Member
    worker : Worker
        This worker.
    """

    def __init__(self, part: Part, run: Member, worker: Worker) -> None:
        self._part = part
        self._run = run
        self._worker = worker
        self._staging: Staging | None = None

    async def attend(self, comm: Comm) -> Status:
        """Do what the head says, who is at the other end of `comm`, as long as it is there."""
        order = asyncio.ensure_future(comm.read())
        try:
            ready = await self._do(order, self._prepare)
            await comm.write(good(ready))
            message = await order
            order = asyncio.ensure_future(comm.read())
            ended: Any = None
            if message["what"] == "start":
                ended = await self._do(order, partial(self._start, message["command"]))
            await comm.write(good(ended))
            await order  # the head closes the connection
        except PilotError as error:
            with suppress(OSError):
                await comm.write(bad(error))
        except OSError:  # the head is gone
            pass
        finally:
            self._run.held.close()
            with suppress(OSError):
                await order
        return Status.dont_reply

    async def _do(self, order: asyncio.Future[Any], function: Callable[[], _T]) -> _T:
        """Call a function in the thread of a slot, and cancel the attempt when the head has something else to say."""
        work = asyncio.wrap_future(adapter.run_soon(self._worker, function))
        try:
            await asyncio.wait({work, order}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not work.done():
                self._run.cancel(0.0)
        return await work

    def _prepare(self) -> tuple[str, ...]:
        """Have the unit's files here, unless the head's are seen."""
        part, run = self._part, self._run
        if part.leads and not run.shares(part.marker):
            run.directory()
            self._staging = Staging(part.task, run, tells=False)
            self._staging.bring({})
        return run.gpus()

    def _start(self, command: list[str]) -> tuple[int, str]:
        """Run hydra's proxy; its exit status, and what it has to say."""
        path, *arguments = command
        output = PurePath(self._part.marker) / host_of(adapter.contact_of(self._worker))
        program = Program(path, tuple(arguments), {}, None, f"{output}.out", f"{output}.err")
        code, text = 0, ""
        try:
            self._run.start(program, {MARK: self._part.token}).wait(None, _LINES)
        except ExecutableError as error:
            code, text = (255, str(error)) if error.exit_code is None else (error.exit_code, error.stderr)
        if self._staging is not None:
            shutil.rmtree(self._run.directory() / self._part.marker, ignore_errors=True)
            if (written := self._staging.written_input()) is not None:
                raise written
        return code, f"{text}\n" if text else ""
