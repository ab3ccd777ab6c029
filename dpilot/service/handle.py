"""What all handles have in common: an id and URL, a state with its history, callbacks, waiting."""

from __future__ import annotations

import asyncio
import pickle
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterator, MutableMapping
from typing import Any, ClassVar, Self

from dpilot.display import Displayed
from dpilot.errors import ConnectionLostError, PilotError, StateError
from dpilot.runtime.session import Session
from dpilot.states import Lifecycle, State, Table, Transition
from dpilot.urls import ObjectURL

__all__ = ["Callback", "Handle", "counted", "error_line", "expect_handle"]


class Callback:
    """Base for callbacks, as in BigJob: override :meth:`cb`. Any callable of three arguments does as well."""

    def cb(self, unit: Handle, member: str, value: State) -> None:
        """Called once for each change.

        Parameters
        ----------
        unit : Handle
            The pilot or unit that changed.
        member : str
            What changed: ``"state"``.
        value : State
            The new state.
        """

    def __call__(self, unit: Handle, member: str, value: State) -> None:
        """Call :meth:`cb`."""
        self.cb(unit, member, value)


class Handle(Displayed, ABC):
    """Base of all handles. Handles are cheap; the object itself lives at the scheduler.

    Subclasses state the prefix of their ids and the table of their states.
    """

    kind: ClassVar[str]
    table: ClassVar[Table]
    _classes: ClassVar[dict[str, type[Handle]]] = {}

    id: str
    _session: Session

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            Handle._classes[cls.kind] = cls

    # ---------------------------------------------------------------- making and finding

    def _begin(self, session: Session, id: str, timestamp: float | None = None) -> None:
        """Make this the handle of a new object."""
        self._session = session
        self.id = id
        self._life = Lifecycle(self.table, time.time() if timestamp is None else timestamp)
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Any, str, State], Any]] | None = None
        self._open: MutableMapping[str, Any] | None = None
        session.follow(self)

    def _register(self, call: str, state: State, **arguments: Any) -> Any:
        """Have the scheduler make the object, which then is in `state`: no need to wait for the message of it."""
        answer = self._session.call(call, id=self.id, client=self._session.client.id, **arguments)
        with self._session.changed:
            self._enter_early(state)
        return answer

    def _enter_early(self, state: State) -> None:
        """Be in the state that the scheduler has given it, if the message of it has not come yet."""
        if self._life.state is State.New:
            self._life.advance(state, time.time())

    def _reconnect(self, url: str) -> None:
        """Make this the handle of the object with that URL."""
        place = ObjectURL.parse(url, kind=self.kind)
        session = Session.join(place.scheduler)
        self._adopt(session, place.id)

    #: Events that came before the handle was complete; None: it is.
    _early: list[tuple[str | None, float, dict[str, Any]]] | None = None

    def _adopt(self, session: Session, id: str) -> None:
        self._early = []
        self._begin(session, id)
        snapshot = session.snapshot(id)
        self._life.restore(snapshot["history"])
        self._error = snapshot["error"]
        self._adopted(snapshot)
        with session.changed:
            early, self._early = self._early, None
            for event in early:
                self._apply(*event)

    @classmethod
    def _find(cls, session: Session, id: str) -> Any:
        """The handle of any object that is known to the scheduler: this process's own, or a new one."""
        for handle in session.followers(id):
            return handle
        kind = Handle._classes[id.partition("-")[0]]
        handle = kind.__new__(kind)
        handle._adopt(session, id)
        return handle

    @abstractmethod
    def _adopted(self, snapshot: dict[str, Any]) -> None:
        """Take what is special to the kind from a snapshot."""

    # ---------------------------------------------------------------- what users see

    def get_id(self) -> str:
        """The object's id."""
        return self.id

    def get_url(self) -> str:
        """The object's URL, by which any process can reconnect to it while the scheduler lives."""
        return self._session.url(self.id)

    @property
    def url(self) -> str:
        """The object's URL."""
        return self.get_url()

    def get_state(self) -> State:
        """The present state; a string, so ``== "Running"`` works."""
        return self._life.state

    @property
    def state(self) -> State:
        """The present state."""
        return self._life.state

    @property
    def history(self) -> list[Transition]:
        """The states so far, each with when it was entered (seconds since the epoch)."""
        with self._session.changed:
            return self._life.history

    def get_details(self) -> dict[str, Any]:
        """All that is known of the object."""
        return self._session.snapshot(self.id)

    def __repr__(self) -> str:
        # Nothing here asks the scheduler: reprs are wanted in logs and debuggers, in any thread, and after its loss.
        kind = type(self).__name__
        if "_life" not in self.__dict__:
            return f"<{kind}: not connected yet>"
        try:
            return f"<{kind} {self.id}: {', '.join([str(self._life.state), *filter(None, self._told())])}>"
        except Exception:  # a handle that is being made, or changed by another thread at this moment
            return f"<{kind} {self.id}: {self._life.state}>"

    _repr_pretty_ = Displayed._repr_pretty_  # IPython looks for it in the class that has a __repr__

    def _told(self) -> Iterator[str]:
        """What its repr tells besides id and state, as far as this process knows it."""
        if self._error is not None:
            yield error_line(self._error)

    def _known_error(self) -> BaseException | None:
        """What went wrong, if this process knows it already."""
        return self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cancel()

    @abstractmethod
    def cancel(self) -> None:
        """End it."""

    def _end(self, call: str) -> None:
        """End it at the scheduler by a call, and wait until this handle knows."""
        if not self._life.state.is_final and not self._session.is_lost:
            self._session.call(call, id=self.id)
            self._session.wait_until(lambda: self._life.state.is_final, None, self._pending, may_lose=True)

    def set_callback(self, member: str | Callable[..., Any], cb: Callable[..., Any] | None = None) -> None:
        """Have ``cb(self, "state", value)`` called for each change of state from now on, once and in order.

        Parameters
        ----------
        member : str or callable
            ``"state"``, as in BigJob; or the callback, alone.
        cb : callable
            A :class:`Callback` or any callable. It is called in a thread for callbacks; what it raises is logged.
        """
        callback = member if cb is None else cb
        if not callable(callback):
            raise StateError(f"callback {callback!r} cannot be called; give a function or a Callback")
        if isinstance(member, str) and str(member).lower() != "state":
            raise StateError(f"member {member!r} has no callbacks; the member that has is 'state'")
        with self._session.changed:
            self._callbacks = [*(self._callbacks or []), callback]

    def unset_callback(self, member: str | Callable[..., Any] = "state") -> None:
        """Remove the callbacks, or the one that is given."""
        with self._session.changed:
            if callable(member):
                self._callbacks = [c for c in self._callbacks or [] if c is not member]
            else:
                self._callbacks = None

    # ---------------------------------------------------------------- events

    def take_event(self, state: str | None, timestamp: float, details: dict[str, Any]) -> None:
        """For the session: something happened to the object. The session's lock is held."""
        if self._early is None:
            self._apply(state, timestamp, details)
        else:
            self._early.append((state, timestamp, details))

    def _apply(self, state: str | None, timestamp: float, details: dict[str, Any]) -> None:
        error = details.get("error")
        if error is not None:
            self._error = pickle.loads(error)
        if state is not None:
            self._enter(State(state), timestamp)

    def _enter(self, state: State, timestamp: float) -> None:
        try:
            # What is in the history already came with a snapshot that overtook this message.
            changed = (state, timestamp) not in self._life.steps() and self._life.advance(state, timestamp)
        except StateError:
            changed = False  # a stale message: a snapshot that came later said more
        if changed:
            if self._open is not None and self._is_settled():
                self._open.pop(self.id, None)
            for callback in self._callbacks or ():
                self._session.call_back(lambda callback=callback: callback(self, "state", state))  # type: ignore[misc]

    def lose(self) -> None:
        """For the session: the scheduler is lost. The session's lock is held."""
        if not self._life.state.is_final:
            self._enter(State.Unknown, time.time())

    # ---------------------------------------------------------------- waiting

    def _is_settled(self) -> bool:
        """Whether a wait for this object is over."""
        return self._life.state.is_final

    def _pending(self) -> str:
        """What a wait that ran out is told."""
        return f"{self.id} is {self._life.state}"

    def wait(self, timeout: float | None = None) -> State:
        """Wait until it has ended: Done, Failed or Canceled.

        Parameters
        ----------
        timeout : float, optional
            In seconds.

        Returns
        -------
        State

        Raises
        ------
        PilotTimeoutError
            Saying what is still pending, and why.
        ConnectionLostError
            If the scheduler is lost meanwhile.
        """
        if not self._is_settled():
            self._session.wait_until(self._is_settled, timeout, self._pending)
        return self._life.state

    def __await__(self) -> Generator[Any, None, State]:
        return self._settled().__await__()

    async def _settled(self) -> State:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()

        def wake(*_: object) -> None:
            if self._is_settled() or self._session.is_lost:
                loop.call_soon_threadsafe(done.set)

        self.set_callback("state", wake)
        try:
            if not self._is_settled() and not self._session.is_lost:
                await done.wait()
        finally:
            self.unset_callback(wake)
        if not self._is_settled():
            raise ConnectionLostError(f"the scheduler at {self._session.address} was lost while waiting for {self.id}")
        return self._life.state


def counted(states: Counter[State], what: str) -> str:
    """How many there are, and in which states: ``3 data units (1 Failed, 2 Running)``."""
    total = sum(states.values())
    parts = ", ".join(f"{states[state]:,} {state}" for state in State if states[state])
    return f"{total:,} {what}{'' if total == 1 else 's'}" + (f" ({parts})" if parts else "")


def error_line(error: BaseException, most: int = 100) -> str:
    """An error on one line, cut where it would be long."""
    line = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return line if len(line) <= most else f"{line[: most - 1]}…"


def expect_handle(value: Any, kind: type[Handle], what: str) -> Any:
    """Give `value` back if it is a handle of the kind.

    Raises
    ------
    PilotError
    """
    if not isinstance(value, kind):
        raise PilotError(f"{what} {value!r} is a {type(value).__name__}; give a {kind.__name__}")
    return value
