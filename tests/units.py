"""Functions that tests run as compute units, in a module of their own: so workers need not import pytest."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any


def note(log: str, text: str) -> None:
    """Add a line to a file; lines of several processes do not mix."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"{text}\n".encode())
    finally:
        os.close(file)


def hold(gate: str, log: str | None = None, name: str = "") -> tuple[float, float]:
    """Run until the gate (see helpers.Gate) is open; when that was."""
    began = time.time()
    if log is not None:
        note(log, name)
    with Path(gate).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
    return began, time.time()


def hold_and_read(gate: str, data: Any) -> str:
    """Read the one file of a data unit, once the gate is open."""
    hold(gate)
    return read_one(data)


def read_one(data: Any) -> str:
    """Read the one file of a data unit."""
    (name,) = data.files
    with data.open(name, "r") as file:
        return str(file.read())


def work(seconds: float) -> tuple[float, float]:
    """Take that long; when that was."""
    began = time.time()
    time.sleep(seconds)
    return began, time.time()


def named(log: str, name: str, seconds: float = 0.0) -> str:
    """Leave one's name in a file, when done."""
    time.sleep(seconds)
    note(log, name)
    return name


def same(value: Any) -> Any:
    return value


def large(n: int) -> bytes:
    return bytes(range(256)) * (n // 256)


def odd_only(number: int, note: str) -> int:
    if number % 2 == 0:
        raise ArithmeticError(f"{number} is even")
    return number


def fail(message: str) -> None:
    raise ArithmeticError(message)


def whoami(dask_worker: Any) -> tuple[str, int]:
    """Name and process id of the worker (for ``Client.run``)."""
    return str(dask_worker.name), os.getpid()
