"""How long a kind of work runs: learned from the units that have ended, and from those that have not yet."""

from __future__ import annotations

__all__ = ["LEAST_GAP_S", "RunTimes"]

#: Weight of the newest observation in the moving averages.
_WEIGHT = 0.3
#: Where a slot would stand idle for no longer, no unit is sent ahead.
LEAST_GAP_S = 0.01
#: By so many of their mean deviations run times may be shorter than usual and no slot stands idle: where nothing is
#: lost by sending the next unit too early, and where it is.
_EARLY, _SAFE = 0.5, 2.0


class _Kind:
    __slots__ = ("begun_s", "deviation_s", "ended", "is_settled", "mean_s", "running")

    def __init__(self) -> None:
        self.mean_s: float | None = None
        self.deviation_s = 0.0  # mean of how far they were off the mean
        self.ended = 0
        self.running: dict[str, float] = {}  # units that run, and since when, the first one first
        self.begun_s = 0.0  # sum of these times
        self.is_settled = False  # whether so many have ended that those that run need not be asked

    def observe(self, seconds: float) -> None:
        off_s = 0.0 if self.mean_s is None else abs(seconds - self.mean_s)
        self.deviation_s += _WEIGHT * (off_s - self.deviation_s)
        self.mean_s = seconds if self.mean_s is None else self.mean_s + _WEIGHT * (seconds - self.mean_s)
        self.ended += 1
        if self.ended >= len(self.running):
            self.is_settled = True
            self.running.clear()

    def shown_s(self, now: float) -> float:
        """How long the first of those that run has run by now."""
        return max(0.0, now - next(iter(self.running.values()), now))


class RunTimes:
    """Exponentially weighted mean run time of each kind of work.

    The first units that end are the shortest ones. So as long as few have ended, those that run are asked, too: all the
    time that was spent, for each one that has ended, is an estimate without such a bias. It is no more than how long
    one has indeed run by now.

    Parameters
    ----------
    unknown_s : float
        What is assumed of a kind that has not run yet, in seconds.

    Attributes
    ----------
    now : float
        What time it is, as the caller was told last.
    n_known : int
        Of how many kinds one has ended.
    """

    __slots__ = ("_kinds", "_of", "_unknown", "n_known", "now", "unknown_s")

    def __init__(self, unknown_s: float = 0.5) -> None:
        self.unknown_s = unknown_s
        self.now = 0.0
        self.n_known = 0
        self._kinds: dict[str, _Kind] = {}
        self._of: dict[str, _Kind] = {}  # units that run
        self._unknown: dict[_Kind, float] = {}  # of which some run and none has ended, and when the first one began

    def begin(self, kind: str, unit: str, now: float) -> None:
        """A unit of `kind` begins to run."""
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = _Kind()
        if known.mean_s is None:
            self._unknown.setdefault(known, now)
        if not known.is_settled:
            known.running[unit] = now
            known.begun_s += now
            self._of[unit] = known

    def end(self, unit: str) -> None:
        """A unit runs no more, if it ever did."""
        if not self._of:
            return
        known = self._of.pop(unit, None)
        if known is not None and not known.is_settled:
            known.begun_s -= known.running.pop(unit)
            if not known.running:  # all have failed, or were lost
                self._unknown.pop(known, None)

    def running(self, kind: str) -> list[str]:
        """The units of `kind` that run, as long as few have ended."""
        known = self._kinds.get(kind)
        return [] if known is None else list(known.running)

    def observe(self, kind: str, seconds: float) -> None:
        """A unit of `kind` has run for `seconds`."""
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = _Kind()
        self._unknown.pop(known, None)
        self.n_known += known.mean_s is None
        known.observe(seconds)

    def known_s(self, kind: str) -> float | None:
        """How long a unit of `kind` is expected to run, in seconds; None if none has run yet."""
        known = self._kinds.get(kind)
        return None if known is None else known.mean_s

    def follow_s(self, kind: str, gap_s: float, bring_s: float = 0.0, is_queueing: bool = False) -> float | None:
        """How long a unit of `kind` runs at least, if the next one may be sent to its slot so that it is there then.

        None: the next one is sent once it has ended. What is sent must not wait for longer than messages take, for it
        cannot go elsewhere meanwhile; so the end has to be known that well, unless more than that wait for whatever
        slot comes free. Of a kind of which none has ended nothing is known, but for long the next one does not wait
        there, either: see :mod:`~dpilot.placement.followers`.

        Parameters
        ----------
        kind : str
        gap_s : float
            How long messages take to the slot's worker and back: so long it would stand idle.
        bring_s : float
            How long inputs take to be brought there: for so much longer it would.
        is_queueing : bool
            Whether so many wait for slots there that any other one that comes free will have one to run.
        """
        if gap_s + bring_s <= LEAST_GAP_S:
            return None
        known = self._kinds.get(kind)
        if known is None or known.mean_s is None:
            return 0.0
        if is_queueing:
            return max(0.0, known.mean_s - _EARLY * known.deviation_s)
        early_s = _SAFE * known.deviation_s
        is_worth = early_s <= gap_s + bring_s and gap_s < 2 * (known.mean_s - early_s)
        return known.mean_s - early_s if is_worth else None

    def unknown_for_s(self, now: float) -> float | None:
        """For how long the latest kind of which nothing is known has run by now; None: all that run are known."""
        return None if not self._unknown else max(0.0, now - max(self._unknown.values()))

    def shown_s(self, kind: str, now: float) -> float:
        """How long a unit of `kind` runs as far as was seen: if none has ended, as long as the first one has by now."""
        known = self._kinds.get(kind)
        if known is None:
            return 0.0
        return known.shown_s(now) if known.mean_s is None else self.expected_s(kind)

    def expected_s(self, kind: str) -> float:
        """How long a unit of `kind` is expected to run, in seconds."""
        known = self._kinds.get(kind)
        if known is None or known.mean_s is None:
            return self.unknown_s
        if known.is_settled:
            return known.mean_s
        spent_s = (self.now * len(known.running) - known.begun_s) / known.ended
        return max(known.mean_s, min(spent_s, known.shown_s(self.now)))
