"""Sites and the links between them: labels form a tree, machine in datacenter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate

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


_BANDWIDTH_BYTES_PER_S = {
    Distance.SAME_MACHINE: 1e9,
    Distance.SAME_DATACENTER: 5e8,
    Distance.OTHER_DATACENTER: 5e7,
}
_LATENCY_S = {
    Distance.SAME_MACHINE: 1e-4,
    Distance.SAME_DATACENTER: 2e-3,
    Distance.OTHER_DATACENTER: 4e-2,
}
#: Below this the time of a transfer is latency and start-up.
LEAST_TELLING_NBYTES = 256 * 1024
#: Weight of the newest observation in the moving averages.
_WEIGHT = 0.3


class Links:
    """What transfers cost: learned from those that were made, and before the first from how far they go.

    The bandwidth between two sites is an exponentially weighted mean of what was seen between them; what was seen
    between other sites as far apart stands in for pairs that were not seen yet.

    Parameters
    ----------
    bandwidth_bytes_per_s : mapping of Distance to float
        Assumed before the first transfer.
    latency_s : mapping of Distance to float
        Paid once per file.
    """

    def __init__(
        self,
        bandwidth_bytes_per_s: Mapping[Distance, float] | None = None,
        latency_s: Mapping[Distance, float] | None = None,
    ) -> None:
        self.bandwidth_bytes_per_s = dict(bandwidth_bytes_per_s or _BANDWIDTH_BYTES_PER_S)
        self.latency_s = dict(latency_s or _LATENCY_S)
        self._pairs: dict[tuple[Site, Site], float] = {}
        self._assumed = self._assume()

    def observe(self, source: Site, target: Site, nbytes: int, seconds: float) -> None:
        """A transfer of `nbytes` from one site to another took `seconds`.

        Small ones tell nothing of the bandwidth and are passed over.
        """
        if nbytes < LEAST_TELLING_NBYTES or seconds <= 0:
            return
        distance = source.distance(target)
        seen = nbytes / seconds
        pair = source, target
        self._pairs[pair] = _mean(self._pairs.get(pair, self._assumed[distance]), seen)
        self.bandwidth_bytes_per_s[distance] = _mean(self.bandwidth_bytes_per_s[distance], seen)
        self._assumed = self._assume()

    def _assume(self) -> tuple[float, ...]:
        """Bandwidth by distance, of pairs of which no transfer was seen: no better than between nearer ones."""
        return tuple(accumulate((self.bandwidth_bytes_per_s[distance] for distance in Distance), min))

    def rank(self, source: Site, target: Site) -> tuple[Distance, float]:
        """Sorts sources by how well they serve a target: the nearer first, of equally near ones the faster."""
        return source.distance(target), self.transfer_s(source, target, 1_000_000, 1)

    def transfer_s(self, source: Site, target: Site, nbytes: int, n_files: int) -> float:
        """Expected seconds to move `nbytes` in `n_files` files from `source` to `target`."""
        distance = source.distance(target)
        bandwidth = self._pairs.get((source, target)) or self._assumed[distance]
        return self.latency_s[distance] * n_files + nbytes / bandwidth


def _mean(before: float, seen: float) -> float:
    return before + _WEIGHT * (seen - before)
