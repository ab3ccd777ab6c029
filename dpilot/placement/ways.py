"""What all transfers out of a datacenter share, or all into it: its way out, and its way in."""

from __future__ import annotations

__all__ = ["FEW", "MANY", "WEIGHT", "Way"]

#: How many transfers at a time are worth while on a link, or a way, of which nothing is known but one transfer's rate;
#: and at the most.
FEW, MANY = 2, 8
#: Weight of the newest observation in the moving averages.
WEIGHT = 0.3


class Way:
    """What all transfers out of, or into, a datacenter share."""

    __slots__ = ("alone", "capacity", "next_at", "transfers")

    def __init__(self) -> None:
        self.alone = 0.0  # the most that was seen of one transfer, in bytes per second
        self.capacity: float | None = None  # of all transfers at a time
        self.transfers = 0
        self.next_at = 0.0  # not before then another one

    def share(self, rate: float, transfers: int) -> float:
        """What each of so many transfers gets, of which one alone gets `rate`."""
        if transfers <= 1:
            return rate
        return rate / transfers if self.capacity is None else min(rate, self.capacity / transfers)

    def learn(self, seen: float) -> None:
        """One of the transfers had so many bytes per second. Others may have had less, and there may be more room."""
        n = max(1, self.transfers)
        if n == 1:
            self.alone = max(seen, self.alone + WEIGHT * (seen - self.alone))
        elif self.capacity is None or seen * n > self.capacity:
            self.capacity = seen * n
        else:
            self.capacity += WEIGHT / 3 * (seen * n - self.capacity)

    def limit(self) -> int:
        """How many transfers at a time are worth while: one more than fill it, as far as is known."""
        if self.capacity is None or not self.alone:
            return FEW
        return max(FEW, min(MANY, int(self.capacity / self.alone + 0.2) + 1))
