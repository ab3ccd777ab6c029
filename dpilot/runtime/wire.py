"""Requests to schedulers and workers over Dask's comms, from any thread of any process: with its TLS, or none.

A worker's event loop and a client's have other things to do than to move files, and a plain process has none. So each
process that has something to ask has one :class:`Wire`, with an event loop and connections of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import pickle
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from distributed import Security
from distributed.comm.core import Comm, connect

from dpilot import config
from dpilot.errors import ConnectionLostError, PilotError
from dpilot.runtime.adapter import HANDLER, Sealed

__all__ = ["Line", "Wire", "bad", "good", "value_of"]

_T = TypeVar("_T")

#: How many messages may be under way on one line, so that the rate is not bound by the round trip.
_WINDOW = 4
#: How many messages may be under way on all lines together, beside one on each: this bounds the memory.
_EXTRA = 28
#: How many connections to one address are kept to be used again.
_KEPT = 8


def good(value: Any) -> dict[str, Any]:
    """What to answer to a request."""
    return {"good": True, "value": value}


def bad(error: Exception) -> dict[str, Any]:
    """What to answer to a request that failed: `error` will be raised by whoever asked."""
    return {"good": False, "value": pickle.dumps(error)}


class Wire:
    """Connections, and an event loop in a thread that serves them; :meth:`here` gives the process's own."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _here: ClassVar[Wire | None] = None
    _forked: ClassVar[list[Wire]] = []
    #: While this process is a worker: with what it connects to others. Else Dask's configuration says it.
    connection_args: ClassVar[Mapping[str, Any] | None] = None

    def __init__(self) -> None:
        self._kept: defaultdict[str, list[Comm]] = defaultdict(list)
        self.extra = threading.Semaphore(_EXTRA)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dpilot-wire", daemon=True)
        self._thread.start()

    @classmethod
    def here(cls) -> Wire:
        """The wire of this process."""
        with cls._lock:
            if cls._here is None:
                cls._here = cls()
            return cls._here

    @classmethod
    def close_here(cls) -> None:
        """Close the connections of this process. The next request makes new ones."""
        with cls._lock:
            wire, cls._here = cls._here, None
        if wire is not None:
            wire._close()

    @classmethod
    def _after_fork(cls) -> None:
        # The parent goes on using its loop's epoll, which we share: nothing of it may be closed, or collected, here.
        if cls._here is not None:
            cls._forked.append(cls._here)
        cls._here, cls._lock = None, threading.Lock()

    def _close(self) -> None:
        self._run(self._abort_kept())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _abort_kept(self) -> None:
        for comms in self._kept.values():
            for comm in comms:
                comm.abort()
        self._kept.clear()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do something in the loop, and wait for it in this thread."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _in_loop(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have something done in the loop, soon."""
        self._loop.call_soon_threadsafe(function, *arguments)

    # ---------------------------------------------------------------- connections

    async def _connect(self, address: str, afresh: bool = False) -> tuple[Comm, bool]:
        """A connection, and whether it was used before."""
        kept = self._kept[address]
        while kept:
            comm = kept.pop()
            if afresh:
                comm.abort()
            elif not comm.closed():
                return comm, True
        arguments = self.connection_args
        if arguments is None:
            arguments = Security().get_connection_args("client")
        return await connect(address, timeout=config.seconds("scheduler.connect-timeout"), **arguments), False

    def _keep(self, address: str, comm: Comm) -> None:
        kept = self._kept[address]
        if len(kept) < _KEPT:
            kept.append(comm)
        else:
            comm.abort()

    def request(self, address: str, **message: Any) -> Any:
        """Ask a scheduler or worker something, and wait for the answer.

        Parameters
        ----------
        address : str
            Contact address, such as ``tcp://10.0.0.1:8786``.
        **message
            ``op`` names the handler there, and the rest is for it.

        Raises
        ------
        OSError
            If it cannot be reached.
        Exception
            What the other side gave to :func:`bad`.
        """
        return value_of(self._run(self._request(address, message)))

    async def _request(self, address: str, message: dict[str, Any]) -> Any:
        comm, used = await self._connect(address)
        try:
            answer = await _exchange(comm, [message])
        except OSError:
            if not used:
                raise
            # It was closed by the other side while nobody used it, which is no news of the other side as it is now.
            comm, _ = await self._connect(address, afresh=True)
            answer = await _exchange(comm, [message])
        self._keep(address, comm)
        return answer

    def call(self, scheduler: str, call: str, **arguments: Any) -> Any:
        """Ask dpilot on a scheduler; see its ``call_<name>``.

        Raises
        ------
        PilotError
            What it raised.
        ConnectionLostError
            If the scheduler cannot be reached, or has no dpilot.
        """
        try:
            message = {"op": HANDLER, "call": call, "arguments": Sealed.of(arguments)}
            answer = self._run(self._request(scheduler, message))
        except (OSError, ValueError) as error:
            raise ConnectionLostError(f"no scheduler answers at {scheduler}: {error}") from error
        if not isinstance(answer, bytes):
            raise ConnectionLostError(f"no pilots or data units are known at {scheduler}: dpilot is not loaded there")
        done, value = pickle.loads(answer)
        if not done:
            raise value
        return value

    def line(self, address: str) -> Line:
        """A connection on which several messages may be under way, for one thread; to be closed."""
        comm, _ = self._run(self._connect(address))
        return Line(self, address, comm)


class Line:
    """One connection: messages arrive, and are answered, in the order in which they were sent."""

    def __init__(self, wire: Wire, address: str, comm: Comm) -> None:
        self._wire = wire
        self._address = address
        self._comm = comm
        self._extra = 0
        self._unsent: list[dict[str, Any]] = []
        self.under_way = 0

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended."""
        return bool(self._comm.closed())

    def claim(self) -> bool:
        """Whether one more message may be sent before an answer is received."""
        if not self.under_way:
            return True
        if self.under_way < _WINDOW and self._wire.extra.acquire(blocking=False):
            self._extra += 1
            return True
        return False

    def send(self, **message: Any) -> None:
        """Send a message, at the latest with the next :meth:`receive`.

        What it refers to must stay as it is until the answer is there.
        """
        self.under_way += 1
        self._unsent.append(message)

    def receive(self) -> Any:
        """The answer to the first message that has none yet; raises as :meth:`Wire.request`."""
        unsent, self._unsent = self._unsent, []
        answer = self._wire._run(_exchange(self._comm, unsent))  # in one go: the loop is in another thread
        self.under_way -= 1
        if self._extra:
            self._extra -= 1
            self._wire.extra.release()
        return value_of(answer)

    def receive_all(self) -> None:
        """Wait for all answers."""
        while self.under_way:
            self.receive()

    def close(self) -> None:
        """Let others use the connection; it ends if an answer is due on it."""
        for _ in range(self._extra):
            self._wire.extra.release()
        self._extra = 0
        if self.under_way or self.is_lost:
            self._wire._in_loop(self._comm.abort)
        else:
            self._wire._in_loop(self._wire._keep, self._address, self._comm)


async def _exchange(comm: Comm, messages: Iterable[Any]) -> Any:
    """Send messages, and receive one."""
    try:
        for message in messages:
            await comm.write(message)
        return await comm.read()
    except BaseException:
        comm.abort()
        raise


def value_of(answer: Any) -> Any:
    """What :func:`good` was given; raises what :func:`bad` was."""
    if not isinstance(answer, dict) or "good" not in answer:
        if isinstance(answer, dict) and "exception_text" in answer:
            raise PilotError(f"it failed over there: {answer['exception_text']}; see the log of that process")
        raise ConnectionLostError("nothing of dpilot answers there")
    if not answer["good"]:
        raise pickle.loads(answer["value"])
    return answer["value"]


os.register_at_fork(after_in_child=Wire._after_fork)
atexit.register(Wire.close_here)
