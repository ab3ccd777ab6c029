"""What transfers share: the way between two datacenters, the way out of one, and the way into one."""

from __future__ import annotations

from collections import deque
from math import ceil

__all__ = ["EARLY_S", "NOTABLE", "WEIGHT", "Traffic", "Way"]

#: How many transfers at a time may be on a way at the least, of which something is known: one, and the next.
_FEW = 2
#: And at the most.
_MANY = 8
#: Weight of the newest observation in the moving averages.
WEIGHT = 0.3
_WEIGHT_OF_FASTER = 0.7
#: After so many transfers one is begun beside another, to see whether both are as fast as one alone; if they are not,
#: then after twice as many more.
_TRY_AFTER = 16
#: So many transfers at a time count as several, and so many times the rate of one counts as more.
NOTABLE = 1.25
#: How much sooner the next one follows as long as that leaves those before it as fast, and how much at the most: what
#: is seen of a transfer has some latency in it.
_STEP, _LEAST_PACE = 0.04, 0.8
_AS_FAST, _SLOWER = 0.97, 0.9
#: By how many seconds at the most the next one from the same place to the same is early: it takes the connections of
#: the one before as that lets go of them, and would leave the way empty if it came when that has been sent.
EARLY_S = 1.0
#: From so many ends it is seen what several transfers have together.
_FEW_ENDED = 4
#: So many beginnings and ends are remembered.
_MOST_CHANGES = 32


class Traffic:
    """The transfers that are under way, and how many were of late.

    Attributes
    ----------
    transfers : int
        That are under way now.
    """

    __slots__ = ("_changes", "transfers")

    def __init__(self) -> None:
        self.transfers = 0
        self._changes: deque[tuple[float, int]] = deque(maxlen=_MOST_CHANGES)  # when bytes began to flow, or ended

    def enter(self, at: float) -> None:
        """The bytes of one more begin to flow then."""
        self.transfers += 1
        self._changes.append((at, 1))

    def leave(self, now: float) -> None:
        """One has ended."""
        self.transfers -= 1
        self._changes.append((now, -1))

    def beside(self, now: float, seconds: float) -> float:
        """How many transfers there were on average in the last `seconds`, one at the least."""
        n, area, until, since = self.transfers, 0.0, now, now - seconds
        for at, change in reversed(self._changes):
            if at < since:
                break
            if at < until:
                area += n * (until - at)
                until = at
            n -= change
        area += n * (until - since)
        return max(1.0, area / seconds)


class Way(Traffic):
    """Something that transfers share. Each begins when the one before has been sent, as far as is known.

    Transfers that share a way at the same time have the sum of it no sooner, and the first of them has its data later.
    And a flow that begins beside others may be starved: it takes the little that they leave for all that there is.

    Attributes
    ----------
    free_at : float
        When what is on it will have been sent, as far as is known.
    last : object
        The link that the last transfer goes over.
    """

    __slots__ = (
        "_ended",
        "_nbytes",
        "_pace",
        "_since",
        "_since_try",
        "_take_s",
        "_try_after",
        "_were_several",
        "alone",
        "capacity",
        "free_at",
        "last",
    )

    def __init__(self) -> None:
        super().__init__()
        self.alone = 0.0  # what one transfer gets alone, in bytes per second; 0: not known
        self.capacity: float | None = None  # of all transfers at a time, where there were several
        self.free_at = 0.0
        self._pace = 1.0  # of transfers that follow each other: below 1, if they are no slower for it
        self._take_s: deque[float] = deque()  # of it, what is on it, in turn
        self.last: object = None
        self._since_try = 0
        self._try_after = _TRY_AFTER
        # From when on it is counted what has been sent, in how many transfers, and whether some were beside others.
        self._since = 0.0
        self._nbytes = self._ended = 0
        self._were_several = False

    def rate(self, unknown: float) -> float:
        """What it carries in all, in bytes per second; `unknown`, if nothing was seen."""
        return max(self.alone, self.capacity or 0.0) or unknown

    def begin(self, now: float, latency_s: float, seconds: float, link: object = None) -> None:
        """A transfer over a link is about to begin, that takes so many seconds of the way."""
        if not self.transfers:
            self.free_at = now
            self._count_from(now + latency_s)
        elif self.free_at > now and self._since_try >= self._try_after:
            self._since_try, self._try_after = 0, 2 * self._try_after
        self._since_try += 1
        self.free_at = max(now, self.free_at) + seconds * self._pace
        self._take_s.append(seconds * self._pace)
        self.last = link
        self.enter(now + latency_s)

    def end(self, now: float) -> None:
        """One has ended: the first, most likely, and those behind it take no longer than was thought."""
        self._take_s.popleft()
        self.free_at = min(self.free_at, now + sum(self._take_s))
        self.leave(now)

    def wait_s(self, now: float) -> float:
        """How long it takes what is on it to have been sent."""
        return max(0.0, self.free_at - now) if self.transfers else 0.0

    def room_at(
        self,
        latency_s: float,
        seconds: float,
        link: object = None,
        is_known: bool = False,
        begins_s: float = 0.0,
    ) -> float | None:
        """From when on there is room for a transfer over a link that takes so many seconds; None: nobody knows.

        While nothing is known of it, for one at a time. One that takes `begins_s` until its connections, which are new
        to the way, have found out what it carries leaves as much of it to the one before.
        """
        if not self.transfers:
            return 0.0
        if not self.alone and not is_known:
            return None
        # As many as there are between their first byte's way and their last one's, and one that is late.
        most = min(_MANY, max(_FEW, 1 + ceil(latency_s / seconds) if seconds else _MANY))
        if self.capacity is not None and self.alone:
            most = max(most, min(_MANY, int(self.capacity / self.alone + 0.2) + 1))
        if self.transfers >= most:
            return None
        if link is not None and link is self.last:
            early_s = min(seconds, EARLY_S)
        else:
            early_s = min(begins_s, self._most_early_s())
        return 0.0 if self._since_try >= self._try_after else self.free_at - early_s

    def soonest_at(self) -> float | None:
        """The same of the transfer for which there is room first."""
        at = self.room_at(1.0, 0.0, is_known=True)
        return at - self._most_early_s() if at else at

    def _most_early_s(self) -> float:
        """By how many seconds the next one may be early at the most: not before the last one begins to be sent."""
        return min(self._take_s[-1], EARLY_S)

    def lower(self, most: float) -> None:
        """It carries no more than so many bytes per second now."""
        self.alone = min(self.alone, most)
        if self.capacity is not None:
            self.capacity = min(self.capacity, most)

    def learn(self, now: float, nbytes: int, seen: float, beside: float, tells: bool = True) -> None:
        """A transfer of `nbytes` has ended, that had so many bytes per second beside others.

        What several have together is seen from when they end: they may share it very unevenly. If something else on
        its path was narrower, then what one had of the way `tells` nothing.
        """
        self._were_several |= beside >= NOTABLE
        if tells and beside < NOTABLE:
            if self.transfers > 1 and seen > _AS_FAST * self.alone:
                self._pace = max(_LEAST_PACE, self._pace - _STEP)
            elif seen < _SLOWER * self.alone:
                self._pace = min(1.0, self._pace + 2 * _STEP)
            # The first over new connections are slow: what is faster tells more.
            weight = 1.0 if not self.alone else _WEIGHT_OF_FASTER if seen > self.alone else WEIGHT
            self.alone += weight * (seen - self.alone)
        self._nbytes += nbytes
        self._ended += 1
        if self._ended < _FEW_ENDED or now <= self._since:
            return
        if self._were_several:
            together = self._nbytes / (now - self._since)
            if together > NOTABLE * self.rate(together):
                self._since_try, self._try_after = 0, _TRY_AFTER
            self.capacity = together if self.capacity is None else self.capacity + WEIGHT * (together - self.capacity)
        self._count_from(now)

    def _count_from(self, since: float) -> None:
        self._since, self._nbytes, self._ended, self._were_several = since, 0, 0, False
