"""Sites and the links between them: labels form a tree, machine in datacenter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

__all__ = ["Distance", "Links", "Site"]


class Distance(IntEnum):
    """How far apart two sites are in the tree of labels."""

    SAME_MACHINE = 0
    SAME_DATACENTER = 1
    OTHER_DATACENTER = 2


@dataclass(frozen=True, slots=True)
class Site:
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

    def missed_by(self, other: Site) -> str | None:
        """The first label stated here that `other` does not bear, or None if it bears all of them."""
        if self.datacenter and self.datacenter != other.datacenter:
            return f"datacenter {other.datacenter or 'without a label'} is not {self.datacenter}"
        if self.machine and self.machine != other.machine:
            return f"machine {other.machine or 'without a label'} is not {self.machine}"
        return None

    def __str__(self) -> str:
        return "/".join(label for label in (self.datacenter, self.machine) if label) or "no labels"


_GB = 1_000_000_000.0


@dataclass(frozen=True, slots=True)
class Links:
    """What a transfer costs, by the distance it goes.

    Parameters
    ----------
    bandwidth_bytes_per_s : mapping of Distance to float
    latency_s : mapping of Distance to float
        Paid once per file.
    """

    bandwidth_bytes_per_s: Mapping[Distance, float] = field(
        default_factory=lambda: {
            Distance.SAME_MACHINE: _GB,
            Distance.SAME_DATACENTER: _GB / 2,
            Distance.OTHER_DATACENTER: _GB / 20,
        }
    )
    latency_s: Mapping[Distance, float] = field(
        default_factory=lambda: {
            Distance.SAME_MACHINE: 1e-4,
            Distance.SAME_DATACENTER: 2e-3,
            Distance.OTHER_DATACENTER: 4e-2,
        }
    )

    def transfer_s(self, distance: Distance, nbytes: int, n_files: int) -> float:
        """Expected seconds to move `nbytes` in `n_files` files over `distance`."""
        return self.latency_s[distance] * n_files + nbytes / self.bandwidth_bytes_per_s[distance]
