"""How long a kind of work runs: learned from the units that have ended."""

from __future__ import annotations

__all__ = ["RunTimes"]

#: Weight of the newest observation in the moving average.
_WEIGHT = 0.3


class RunTimes:
    """Exponentially weighted mean run time of each kind of work.

    Parameters
    ----------
    unknown_s : float
        What is assumed of a kind that has not run yet, in seconds.
    """

    __slots__ = ("_begun", "_deviation_s", "_mean_s", "unknown_s")

    def __init__(self, unknown_s: float = 0.5) -> None:
        self.unknown_s = unknown_s
        self._mean_s: dict[str, float] = {}
        self._deviation_s: dict[str, float] = {}  # mean of how far they were off the mean
        self._begun: dict[str, float] = {}  # when the first one began, of kinds of which none has ended

    def begin(self, kind: str, now: float) -> None:
        """A unit of `kind` begins to run."""
        if kind not in self._mean_s:
            self._begun.setdefault(kind, now)

    def observe(self, kind: str, seconds: float) -> None:
        """A unit of `kind` has run for `seconds`."""
        mean_s = self._mean_s.get(kind)
        self._begun.pop(kind, None)
        off_s = 0.0 if mean_s is None else abs(seconds - mean_s)
        deviation_s = self._deviation_s.get(kind, 0.0)
        self._deviation_s[kind] = deviation_s + _WEIGHT * (off_s - deviation_s)
        self._mean_s[kind] = seconds if mean_s is None else mean_s + _WEIGHT * (seconds - mean_s)

    def known_s(self, kind: str) -> float | None:
        """How long a unit of `kind` is expected to run, in seconds; None if none has run yet."""
        return self._mean_s.get(kind)

    def soonest_s(self, kind: str) -> float | None:
        """How soon a unit of `kind` may well end, in seconds; None if none has run yet."""
        mean_s = self._mean_s.get(kind)
        return None if mean_s is None else max(0.0, mean_s - 2 * self._deviation_s[kind])

    def unknown_for_s(self, now: float) -> float | None:
        """For how long the latest kind of which nothing is known has run by now; None: all are known."""
        return None if not self._begun else max(0.0, now - max(self._begun.values()))

    def shown_s(self, kind: str, now: float) -> float:
        """How long a unit of `kind` runs as far as was seen: if none has ended, as long as the first one has by now."""
        mean_s = self._mean_s.get(kind)
        return max(0.0, now - self._begun.get(kind, now)) if mean_s is None else mean_s

    def expected_s(self, kind: str) -> float:
        """How long a unit of `kind` is expected to run, in seconds."""
        return self._mean_s.get(kind, self.unknown_s)
