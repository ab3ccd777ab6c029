"""A store as it travels, with the worker that serves it to those who do not see it; and a replica in one."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dpilot.data import Store

__all__ = ["CACHE", "Place", "Replica"]

#: What the cache of a machine has of a data unit is reached as a store whose id begins so; the entry's name follows.
CACHE = "cache:"


class Place(NamedTuple):
    """A store, and how it is reached.

    ``host`` is the address of a worker that sees a machine-local store; None where there is none, or where the store is
    reached from everywhere.
    """

    store: Store
    host: str | None = None


@dataclass(slots=True)
class Replica:
    """One replica of an input, as seen from the pilot of the unit that reads it.

    ``distance`` is 0 on the same machine, 1 in the same datacenter and 2 elsewhere; ``may_link`` whether the labels
    allow that its files are linked, should they be visible.
    """

    pd: str
    place: Place
    distance: int
    may_link: bool
    _pickled: bytes | None = field(default=None, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Replica.of_pickled, (self.pickled(),)

    def pickled(self) -> bytes:
        """The replica as :meth:`of_pickled` reads it."""
        # Those of a store look alike, and go out with every unit that reads: what to say of them is worked out once.
        if self._pickled is None:
            self._pickled = pickle.dumps((self.pd, self.place, self.distance, self.may_link))
        return self._pickled

    @classmethod
    def of_pickled(cls, pickled: bytes) -> Replica:
        """The replica that :meth:`pickled` told."""
        return cls(*pickle.loads(pickled))
