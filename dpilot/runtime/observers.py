"""Who watches what happens on a scheduler: upper layers register here, so that the runtime need not know them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from dpilot.runtime.records import Record, UnitRecord
from dpilot.states import State

if TYPE_CHECKING:
    from dpilot.runtime.coordinator import Coordinator

__all__ = ["Observer", "Observers", "register"]

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Is told of changes, in the scheduler's event loop, just after they were made. It changes nothing itself."""

    def advanced(self, record: Record, before: State) -> None:
        """A record has entered another state."""

    def told(self, record: Record) -> None:
        """Something else about a record has changed, such as how far a transfer of a data unit is."""

    def staged(self, record: UnitRecord) -> None:
        """A unit's inputs have come: its record tells from where."""

    def close(self) -> None:
        """The scheduler ends."""


#: What makes an observer of a scheduler that begins.
_makers: list[Callable[[Coordinator], Observer | None]] = []


def register(make: Callable[[Coordinator], Observer | None]) -> None:
    """Have `make` called with every coordinator that begins from now on; what it returns, if any, observes that one."""
    if make not in _makers:
        _makers.append(make)


class Observers:
    """The observers of one scheduler. One that fails is let go: units do not fail because somebody watches."""

    def __init__(self) -> None:
        self._observers: list[Observer] = []

    def begin(self, coordinator: Coordinator) -> None:
        """Make them."""
        for make in _makers:
            try:
                observer = make(coordinator)
                if observer is not None:
                    self._observers.append(observer)
            except Exception:
                logger.exception("there is no monitor on this scheduler")

    def advanced(self, record: Record, before: State) -> None:
        """See :class:`Observer`."""
        for observer in self._observers:
            try:
                observer.advanced(record, before)
            except Exception:
                self._let_go(observer)

    def told(self, record: Record) -> None:
        """See :class:`Observer`."""
        for observer in self._observers:
            try:
                observer.told(record)
            except Exception:
                self._let_go(observer)

    def staged(self, record: UnitRecord) -> None:
        """See :class:`Observer`."""
        for observer in self._observers:
            try:
                observer.staged(record)
            except Exception:
                self._let_go(observer)

    def close(self) -> None:
        """The scheduler ends."""
        for observer in self._observers:
            observer.close()
        self._observers = []

    def _let_go(self, observer: Observer) -> None:
        logger.exception("the monitor has failed; it is switched off")
        self._observers = [other for other in self._observers if other is not observer]
        observer.close()
