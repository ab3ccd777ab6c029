"""A store as it travels: with the worker that serves it to those who do not see it."""

from __future__ import annotations

from typing import NamedTuple

from dpilot.data import Store

__all__ = ["CACHE", "Place"]

#: What the cache of a machine has of a data unit is reached as a store whose id begins so; the entry's name follows.
CACHE = "cache:"


class Place(NamedTuple):
    """A store, and how it is reached.

    ``host`` is the address of a worker that sees a machine-local store; None where there is none, or where the store is
    reached from everywhere.
    """

    store: Store
    host: str | None = None
