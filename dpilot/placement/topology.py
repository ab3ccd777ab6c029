"""Sites, and how far apart they are: labels form a tree, machine in datacenter."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

__all__ = ["ANYWHERE", "LEAST_TELLING_NBYTES", "Distance", "Site"]

#: Below this the time of a transfer is latency and start-up: it tells nothing of the bandwidth.
LEAST_TELLING_NBYTES = 256 * 1024


class Distance(IntEnum):
    """How far apart two sites are in the tree of labels."""

    SAME_MACHINE = 0
    SAME_DATACENTER = 1
    OTHER_DATACENTER = 2


class Site(NamedTuple):
    """The labels of a pilot, of a store, or those that a unit asks for.

    Parameters
    ----------
    datacenter, machine : str or None
        None: not stated.
    """

    datacenter: str | None = None
    machine: str | None = None

    def distance(self, other: Site) -> Distance:
        """How far `other` is, as far as the labels tell.

        What is not stated is not known to differ: sites of which neither the machines nor the
        datacenters can be compared count as one datacenter.
        """
        if self.datacenter and other.datacenter and self.datacenter != other.datacenter:
            return Distance.OTHER_DATACENTER
        if self.machine and self.machine == other.machine:
            return Distance.SAME_MACHINE
        return Distance.SAME_DATACENTER

    def is_near(self, other: Site) -> bool:
        """Whether `other` is in the same datacenter, as far as the labels tell."""
        return not (self.datacenter and other.datacenter and self.datacenter != other.datacenter)

    def of_pilot(self, pilot: str) -> Site:
        """The site of a pilot that bears these labels: without one for the machine, on a machine of its own."""
        return self if self.machine else Site(self.datacenter, f"({pilot})")

    def missed_by(self, other: Site) -> str | None:
        """The first label stated here that `other` does not bear, or None if it bears all of them."""
        if self.datacenter and self.datacenter != other.datacenter:
            return f"datacenter {other.datacenter or 'without a label'} is not {self.datacenter}"
        if self.machine and self.machine != other.machine:
            return f"machine {other.machine or 'without a label'} is not {self.machine}"
        return None

    def __str__(self) -> str:
        return "/".join(label for label in (self.datacenter, self.machine) if label) or "no labels"


#: No labels: what asks for this asks for no place.
ANYWHERE = Site()
