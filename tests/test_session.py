"""A process's connection: what waits in it."""

from __future__ import annotations

import gc
import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import LocalCluster
from distributed.core import Status

from dpilot.runtime import embedded
from dpilot.runtime.session import Session


def test_an_interrupt_that_comes_when_the_lock_was_just_let_go_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            self.release()  # as Python's own does, which takes it again only if nothing comes between
            raise KeyboardInterrupt

    session = SimpleNamespace(changed=threading.RLock(), _waiting={}, is_lost=False)
    monkeypatch.setattr(threading, "Condition", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        Session.wait_until(session, lambda: False, 1.0, str)
    monkeypatch.undo()
    assert session._waiting == {}
    free = []
    thread = threading.Thread(target=lambda: free.append(session.changed.acquire(blocking=False)))
    thread.start()
    thread.join()
    assert free == [True]


def test_a_thread_that_waits_looks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt that comes just before the thread falls asleep does not wake it; one in 1,500 was lost."""
    slept: list[float | None] = []

    class Interrupted(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            slept.append(timeout)
            if len(slept) == 2:
                raise KeyboardInterrupt
            return super().wait(0.001)

    session = SimpleNamespace(changed=threading.RLock(), _waiting={}, is_lost=False)
    monkeypatch.setattr(threading, "Condition", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        Session.wait_until(session, lambda: False, None, str)
    assert slept == [1.0, 1.0]


@pytest.mark.cluster
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_while_the_embedded_scheduler_starts_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """It would use its configuration, and make files, after whoever was interrupted has cleaned up."""
    made: list[LocalCluster] = []

    def interrupted(**options: Any) -> LocalCluster:
        if when == "before":
            signal.raise_signal(signal.SIGINT)
        made.append(LocalCluster(**options))
        if when == "after":
            signal.raise_signal(signal.SIGINT)
        return made[-1]

    monkeypatch.setattr(embedded, "LocalCluster", interrupted)
    monkeypatch.setattr(Session, "_embedded", None)
    before, handler = dict(Session._sessions), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Session.join()
    (cluster,) = made
    assert cluster.status is Status.closed
    assert Session._sessions == before
    assert Session._embedded is None
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.cluster
def test_garbage_is_looked_for_less_often_as_long_as_there_is_an_embedded_scheduler() -> None:
    before = gc.get_threshold()
    session = Session._embed()
    try:
        assert gc.get_threshold() == tuple(3 * threshold for threshold in before)
    finally:
        session.close()
    assert gc.get_threshold() == before


def test_a_second_interrupt_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it goes on")

    monkeypatch.setattr(Session, "_start", hangs)
    monkeypatch.setattr(Session, "_embedded", None)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Session.join()
    assert signal.getsignal(signal.SIGINT) is handler
