"""A process's connection to one scheduler: calls, submissions and events."""

from __future__ import annotations

import atexit
import logging
import pickle
import queue
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, Protocol

from dask._task_spec import Task, TaskRef
from distributed import Client, Future

from dpilot import config
from dpilot._version import version
from dpilot.data import Store
from dpilot.errors import ConnectionLostError, InputError, PilotError, PilotTimeoutError
from dpilot.runtime import adapter
from dpilot.runtime.carrier import Carrier
from dpilot.runtime.embedded import Embedded, held_back
from dpilot.runtime.peer import reachable
from dpilot.runtime.places import Place
from dpilot.runtime.scheduler import PilotPlugin
from dpilot.runtime.work import Reference, UnitTask
from dpilot.runtime.worker import UnitPlugin, run_unit
from dpilot.states import State
from dpilot.urls import ObjectURL

__all__ = ["Follower", "Future", "Listener", "Session", "future_key"]

logger = logging.getLogger(__name__)

#: After how long a thread that waits looks again, by itself.
_LOOK_S = 1.0


class Follower(Protocol):
    """What follows an object on the scheduler: a handle."""

    id: str

    def take_event(self, state: str | None, timestamp: float, details: dict[str, Any]) -> None:
        """Something happened to the object (called in the event loop, with the session's lock held)."""

    def lose(self) -> None:
        """The scheduler is lost (called likewise)."""


class Listener(Protocol):
    """What wants to know that something has happened, whatever it is."""

    def wake(self) -> None:
        """Events came (called in the event loop, with the session's lock held)."""


def future_key(obj: Any) -> str | None:
    """The key of the task whose result `obj` is, if it is a Dask future."""
    return str(obj.key) if isinstance(obj, Future) else None


class Session:
    """A process's connection to one scheduler. There is one per scheduler; :meth:`join` finds or makes it.

    Parameters
    ----------
    client : distributed.Client
    own : Embedded, optional
        The scheduler, if it is this process's own.
    """

    _lock = threading.RLock()
    _sessions: dict[str, Session] = {}  # noqa: RUF012 - one for the process is what is meant
    _embedded: Session | None = None

    def __init__(self, client: Client, own: Embedded | None = None) -> None:
        self.client = client
        self._own = own
        self.address = adapter.address_of(client)
        self.changed = threading.RLock()  # held while anything changes
        self._waiting: dict[threading.Condition, Callable[[], bool]] = {}  # threads, and what each waits for
        self.is_lost = False
        self.is_closing = False
        self.carrier = Carrier(self._tell_of_job, self.reach, int(config.get("data.transfers-per-worker")))
        self._handles: weakref.WeakValueDictionary[str, Follower] = weakref.WeakValueDictionary()
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._others: dict[str, weakref.WeakSet[Follower]] = {}  # second handles of one object
        self._buffer: list[tuple[UnitTask, str, tuple[Reference, ...], Callable[[Future[Any]], None]]] = []
        self._sent: dict[str, str] = {}  # unit's id -> key, of those that the scheduler has not told of yet
        self._at_end: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._callbacks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._caller: threading.Thread | None = None
        client.register_plugin(PilotPlugin())
        client.register_plugin(UnitPlugin())
        adapter.on_events(client, self._take_events)
        adapter.on_refused(client, self._refused)
        adapter.on_lost(client, self._lose)
        there = self.call("hello")
        if there != version:
            logger.warning("dpilot is %s on the scheduler and %s here; install the same one at both", there, version)

    # ---------------------------------------------------------------- joining and leaving

    @classmethod
    def join(cls, coordination_url: str | None = None) -> Session:
        """The session with a scheduler.

        Parameters
        ----------
        coordination_url : str, optional
            Contact address of a Dask scheduler. None: the embedded one, which is started when first needed
            and shared by the whole process.

        Raises
        ------
        ConnectionLostError
            If there is no scheduler at the address, or dpilot cannot be loaded there.
        """
        with cls._lock:
            if coordination_url is None:
                if cls._embedded is None or cls._embedded.is_lost:
                    cls._embedded = cls._embed()
                    cls._sessions[cls._embedded.address] = cls._embedded
                return cls._embedded
            session = cls._sessions.get(coordination_url)
            if session is None or session.is_lost:
                session = cls._sessions[coordination_url] = cls._connect(coordination_url)
            return session

    @classmethod
    def _embed(cls) -> Session:
        """Start a scheduler. An interrupt waits until it is there, and ends it: half of one could not be ended."""
        session = None
        try:
            with held_back():
                session = cls._start()
        except BaseException:
            if session is not None:
                with held_back():
                    session.close()
            raise
        return session

    @classmethod
    def _start(cls) -> Session:
        embedded = Embedded()
        try:
            return cls(embedded.client(), embedded)
        except BaseException:
            embedded.close()
            raise

    @classmethod
    def _connect(cls, address: str) -> Session:
        try:
            client = Client(address, set_as_default=False, timeout=config.seconds("scheduler.connect-timeout"))
        except (OSError, TimeoutError) as error:
            raise ConnectionLostError(
                f"no scheduler answers at {address}: {error}; start one with `dask scheduler`, or correct the URL"
            ) from None
        try:
            return cls(client)
        except (ImportError, AttributeError, OSError) as error:
            client.close()
            raise ConnectionLostError(
                f"dpilot cannot be loaded on the scheduler at {address}: {error}; install dpilot there, too"
            ) from error

    def at_end(self, method: Callable[[], None]) -> None:
        """Have a bound method called when the process ends, or :meth:`close` is called."""
        self._at_end.append(weakref.WeakMethod(method))

    def close(self) -> None:
        """Let go of all that this process holds at the scheduler; an embedded scheduler ends."""
        with Session._lock:
            Session._sessions = {a: s for a, s in Session._sessions.items() if s is not self}
            if Session._embedded is self:
                Session._embedded = None
        self.is_closing = True
        methods, self._at_end = self._at_end, []
        for reference in methods:
            method = reference()
            if method is not None:
                try:
                    method()
                except Exception:
                    logger.exception("an object could not be ended in good order")
        self.carrier.close()
        self._callbacks.put(None)
        self.client.close()
        if self._own is not None:
            self._own.close()

    @classmethod
    def close_all(cls) -> None:
        """Close the sessions of this process."""
        with cls._lock:
            sessions = list(cls._sessions.values())
        for session in sessions:
            session.close()

    @property
    def dashboard_url(self) -> str | None:
        """URL of the Dask dashboard, or None without one."""
        if self._own is not None and not self._own.has_dashboard:
            return None
        url = str(self.client.dashboard_link)
        return None if "None" in url or not url else url

    def url(self, id: str) -> str:
        """The URL of an object at this scheduler."""
        return str(ObjectURL(self.address, id))

    # ---------------------------------------------------------------- calls

    def _check(self) -> None:
        if self.is_lost:
            raise ConnectionLostError(f"the scheduler at {self.address} is lost; make new services to go on")

    def call(self, name: str, **arguments: Any) -> Any:
        """Ask the scheduler's plugin; see its ``call_<name>``.

        Raises
        ------
        PilotError
            What the plugin raised.
        ConnectionLostError
            If the scheduler cannot be reached.
        """
        self._check()
        try:
            answer = self.client.sync(
                adapter.call_from_client, self.client, call=name, arguments=adapter.Sealed.of(arguments)
            )
        except (OSError, RuntimeError) as error:
            raise ConnectionLostError(f"the scheduler at {self.address} does not answer: {error}") from error
        good, value = pickle.loads(answer)
        if not good:
            raise value
        return value

    def peek(self, name: str, timeout_s: float, **arguments: Any) -> Any:
        """As :meth:`call`, for what is only to be shown: None where there is no answer in time, for whatever reason."""
        if self.is_lost or self.client.asynchronous:  # the event loop's own thread cannot wait for itself
            return None
        try:
            answer = self.client.sync(
                adapter.call_from_client,
                self.client,
                call=name,
                arguments=adapter.Sealed.of(arguments),
                callback_timeout=timeout_s,
            )
            good, value = pickle.loads(answer)
        except Exception:
            return None
        return value if good else None

    async def peek_async(self, name: str, **arguments: Any) -> Any:
        """As :meth:`peek`, in the client's event loop."""
        try:
            sealed = adapter.Sealed.of(arguments)
            good, value = pickle.loads(await adapter.call_from_client(self.client, call=name, arguments=sealed))
        except Exception:
            return None
        return value if good else None

    def follow(self, handle: Follower) -> None:
        """Have the events of a handle's object given to it, as long as somebody holds the handle."""
        with self.changed:
            if self._handles.setdefault(handle.id, handle) is not handle:
                self._others.setdefault(handle.id, weakref.WeakSet()).add(handle)

    def unfollow(self, handle: Follower) -> None:
        """No more events for a handle, which is about to be another object's."""
        with self.changed:
            if self._handles.get(handle.id) is handle:
                del self._handles[handle.id]
            self._others.get(handle.id, set()).discard(handle)

    def followers(self, id: str) -> list[Follower]:
        """The handles of an object in this process."""
        first = self._handles.get(id)
        others = self._others.get(id, ()) if self._others else ()
        return [*([first] if first is not None else []), *others]

    def snapshot(self, id: str) -> dict[str, Any]:
        """All that the scheduler knows of an object; its events come to this process from now on."""
        found: dict[str, Any] = self.call("snapshot", id=id, client=self.client.id)
        return found

    # ---------------------------------------------------------------- submission

    def submit(
        self, units: Iterable[tuple[UnitTask, str, tuple[Reference, ...], Callable[[Future[Any]], None]]]
    ) -> None:
        """Submit units: each with its task's key, the results it takes, and who gets its future.

        Units that are submitted within a few milliseconds go in one graph: a graph each would cost the scheduler
        three times as much.

        Raises
        ------
        ConnectionLostError
        """
        with self.changed:
            self._check()
            idle = not self._buffer
            self._buffer.extend(units)
        if idle:
            adapter.call_in_loop(self.client, self.flush)

    def flush(self) -> None:
        """Send what was submitted and not sent yet."""
        with self.changed:
            units, self._buffer = self._buffer, []
            if not units or self.is_lost:
                return
            graph = {
                key: Task(key, run_unit, task, references, *(TaskRef(reference.id) for reference in references))
                for task, key, references, _ in units
            }
            keys = list(graph)
            self._sent.update((task.id, key) for task, key, _, _ in units)
            # What is taken as an argument must be in the graph, or known to the scheduler by a future.
            futures = self.client.get(graph, keys, sync=False)
            for (_, _, _, give), future in zip(units, futures, strict=True):
                give(future)

    def settle(self, ids: Collection[str] | None = None) -> None:
        """Send what was submitted, and wait until the scheduler has it; with `ids`, these units only.

        Graphs do not travel with the calls: a call that is about a unit might come before the unit.
        """
        self.flush()
        with self.changed:
            sent = set(self._sent) if ids is None else self._sent.keys() & ids
        if sent:
            self.wait_until(
                lambda: self._sent.keys().isdisjoint(sent), None, lambda: f"{len(sent)} units are on their way"
            )

    def future(self, id: str, key: str) -> Future[Any]:
        """A Dask future of a unit that the scheduler has.

        Raises
        ------
        StateError
            If its result is not there any more.
        """
        future: Future[Any] = Future(key, client=self.client)  # first, so that the scheduler's answer finds it
        self.call("hold", id=id, client=self.client.id)
        return future

    # ---------------------------------------------------------------- events

    def _take_events(self, events: list[Any]) -> None:
        with self.changed:
            for id, state, timestamp, details in events:
                if id is None:  # not of an object: a job for this process
                    self._take_job(**details)
                    continue
                self._sent.pop(id, None)
                for handle in self.followers(id):
                    handle.take_event(state, timestamp, details)
            self._changed()

    def _changed(self) -> None:
        for listener in list(self._listeners):
            listener.wake()
        for thread, condition in self._waiting.items():  # to wake one for nothing costs more than its condition
            if self.is_lost or _holds(condition):
                thread.notify()

    def listen(self, listener: Listener) -> None:
        """Have a listener woken by all events, as long as somebody holds it."""
        with self.changed:
            self._listeners.add(listener)

    def _take_job(self, what: str, job: str, pickled: bytes = b"") -> None:
        if what == "carry":
            self.carrier.take(job, pickled)
        else:
            self.carrier.drop(job)

    def _tell_of_job(self, job: str, what: str, **details: Any) -> None:
        """The carrier tells how far a job is, or what it gave (in a thread)."""
        with suppress(ConnectionLostError):
            if what == "moved":
                self.call("moved", transfer=job, **details)
            else:
                self.call("job_ended", job=job, **details | {"value": pickle.loads(details["value"])})

    def reach(self, place: Place) -> Store:
        """A store in this process: itself, or through the worker that sees it."""
        return reachable(place, self.address)

    def _refused(self, keys: Collection[str], reason: str) -> None:
        """Dask did not take a graph: its units have failed before they were known to the plugin."""
        if not self._sent:
            return
        with self.changed:
            for id in [id for id, key in self._sent.items() if key in keys]:
                del self._sent[id]
                error = InputError(
                    f"{id} was refused by the scheduler ({reason}): a result that it takes as an argument is not "
                    "there any more, because its unit was canceled or its future released"
                )
                for handle in self.followers(id):
                    handle.take_event(str(State.Failed), time.time(), {"error": pickle.dumps(error)})
            self._changed()

    def _lose(self) -> None:
        with self.changed:
            self.is_lost = True
            for id in list(self._handles):
                for handle in self.followers(id):
                    handle.lose()
            self._changed()

    def call_back(self, function: Callable[[], None]) -> None:
        """Call a user's callback in a thread of its own, one after the other."""
        if self._caller is None:
            self._caller = threading.Thread(target=self._serve_callbacks, name="dpilot-callbacks", daemon=True)
            self._caller.start()
        self._callbacks.put(function)

    def _serve_callbacks(self) -> None:
        while (function := self._callbacks.get()) is not None:
            try:
                function()
            except Exception:
                logger.exception("a callback failed")

    def wait_until(
        self, condition: Callable[[], bool], timeout: float | None, pending: Callable[[], str], may_lose: bool = False
    ) -> None:
        """Wait until events have made `condition` true.

        Parameters
        ----------
        condition : callable
            Evaluated at every event, with the session's lock held, in whichever thread.
        timeout : float, optional
            In seconds.
        pending : callable
            What is still pending, and why, for the message of the error.
        may_lose : bool
            Whether the loss of the scheduler ends the wait without an error.

        Raises
        ------
        PilotTimeoutError
        ConnectionLostError
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self.changed:
            thread = threading.Condition(self.changed)
            self._waiting[thread] = condition
            try:
                while not condition():
                    if self.is_lost:
                        if may_lose:
                            return
                        raise ConnectionLostError(f"the scheduler at {self.address} was lost while waiting")
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        break
                    try:
                        # Not for ever: a signal that comes just before Python falls asleep does not wake it.
                        thread.wait(_LOOK_S if left is None else min(left, _LOOK_S))
                    except KeyboardInterrupt:
                        # It may come when Python has let go of the lock, and would not take it again.
                        try:
                            thread.notify(0)
                        except RuntimeError:
                            self.changed.acquire()
                        raise
                else:
                    return
            finally:
                del self._waiting[thread]
        try:
            reason = pending()
        except PilotError as error:
            reason = str(error)
        raise PilotTimeoutError(f"still pending after {timeout:g} s: {reason}")


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except Exception:  # whoever waits for it will see
        return True


# Registered after distributed's own, so called before: pilots end while their scheduler is there.
atexit.register(Session.close_all)
