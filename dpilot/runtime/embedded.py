"""The scheduler of a process that names none: it is in the process itself, and ends with it."""

from __future__ import annotations

import copy
import gc
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from distributed import Client, LocalCluster

from dpilot import config

__all__ = ["Embedded", "collect_seldom", "held_back"]

_SELDOM = 3  # as `dask scheduler` has it


class Embedded:
    """A scheduler without workers in this process, and what changes for the process as long as it lives."""

    def __init__(self) -> None:
        host = str(config.get("scheduler.host"))
        dashboard = config.get("scheduler.dashboard-address")
        _have_own_handlers()
        self._cluster = LocalCluster(
            n_workers=0,
            processes=True,
            host=host,
            scheduler_port=0,
            # Without a dashboard, too, Dask serves its health over HTTP; given no address it would take port 8787.
            dashboard_address=_free_address(dashboard or f"{host}:0"),
            scheduler_kwargs={"dashboard": bool(dashboard)},
            silence_logs=logging.ERROR,  # that results are gone with their pilot is no news
        )
        self._usual = collect_seldom()

    def client(self) -> Client:
        """A client of it."""
        return Client(self._cluster, set_as_default=False)

    @property
    def has_dashboard(self) -> bool:
        """Whether it shows a dashboard."""
        return bool(config.get("scheduler.dashboard-address"))

    def close(self) -> None:
        """End it."""
        self._cluster.close()
        gc.set_threshold(*self._usual)


def collect_seldom() -> tuple[int, int, int]:
    """Have Python look for garbage less often in the process of a scheduler; returns the thresholds that it had.

    Tasks and units are many objects and no garbage: to look through them takes about as long as to schedule them.
    """
    usual = gc.get_threshold()
    gc.set_threshold(*(_SELDOM * threshold for threshold in usual))
    return usual


@contextmanager
def held_back() -> Iterator[None]:
    """Have signals that Python code handles, such as interrupts, wait until this is done; not a second one."""
    received: list[int] = []
    usual: dict[int, Any] = {}

    def hold(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            usual[number](number, frame)

    try:
        if threading.current_thread() is threading.main_thread():  # no other one gets any
            for kind in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(kind)):
                    usual[kind] = handler
                    signal.signal(kind, hold)
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        if len(received) == 1:
            signal.raise_signal(received[0])


def _have_own_handlers() -> None:
    """Give dpilot's loggers handlers of their own.

    All loggers of Dask's configuration share one, and a cluster that is to be quiet quietens that: dpilot with it.
    """
    shared = logging.getLogger("distributed").handlers
    for name, log in list(logging.root.manager.loggerDict.items()):
        if isinstance(log, logging.Logger) and name.partition(".")[0] == "dpilot":
            log.handlers = [copy.copy(handler) if handler in shared else handler for handler in log.handlers]


def _free_address(address: str) -> str:
    """`address`, with another port if that one is in use."""
    host, _, port = str(address).rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host or "", int(port)))
        except OSError:
            return f"{host}:0"
    return str(address)
