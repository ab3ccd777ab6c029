"""In which order copies are brought, so that the last one is there soon.

Each takes the way out of one datacenter and the way into another one. What looks best at any moment may leave ways with
nothing to do later: there and back between two of three datacenters keeps the third from all others. So it is looked
ahead: for every link over which the next copy may come, the rest is put in order by simple rules, and the link for
which that ends first is taken; of several, one that is free sooner, or for which the copies come sooner on average.

This is a rollout (Bertsekas, Tsitsiklis and Wu, Journal of Heuristics 3, 245-262, 1997); what is put in order is an
open shop, whose machines are the ways.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, MutableMapping, Sequence
from typing import NamedTuple

__all__ = ["Flow", "foremost"]

#: How many steps it may take to look ahead; with more to do, the last of the rules decides.
_MOST_STEPS = 1500

#: Which flow is next: the one of which this is least. `at`: when its next copy could begin, with what it takes to get
#: going; `load_s`: how much there is to do yet on that of its ways which has most to do.
_RULES: tuple[Callable[[float, float], float], ...] = (
    lambda at, load_s: at,
    lambda at, load_s: at - load_s,
)


class Flow(NamedTuple):
    """Copies that are to come over one link, one after the other.

    Parameters
    ----------
    ways : tuple
        What they share with other flows.
    copies : sequence of tuple of float
        For each of them how many seconds it takes of each of the ways.
    begins_s : float
        How many seconds more it takes, if the last that came over any of the ways was of another flow.
    """

    ways: tuple[Hashable, ...]
    copies: Sequence[Sequence[float]]
    begins_s: float = 0.0

    def begins(self, number: int, free_at: Mapping[Hashable, float], last: Mapping[Hashable, int]) -> float:
        """When the next copy has got going, if the flow has this number."""
        at = max([free_at[way] for way in self.ways])
        return at if all(last[way] == number for way in self.ways) else at + self.begins_s

    def take(
        self, number: int, free_at: MutableMapping[Hashable, float], last: MutableMapping[Hashable, int], copy: int = 0
    ) -> float:
        """One of the copies takes its ways; gives when it has come."""
        at = self.begins(number, free_at, last)
        for way, seconds in zip(self.ways, self.copies[copy], strict=True):
            free_at[way] = at + seconds
            last[way] = number
        return at + max(self.copies[copy])


def foremost(
    flows: Sequence[Flow],
    free_at: Mapping[Hashable, float],
    last: Mapping[Hashable, int],
    among: Collection[int] | None = None,
) -> int:
    """The flow of which one copy should come before all others.

    Parameters
    ----------
    flows : sequence of Flow
        One of them has copies at the least. Of those that are equally good the first is taken.
    free_at : mapping
        By way: when it is free.
    last : mapping
        By way: the number of the flow to which what came over it last belongs, or -1.
    among : collection of int, optional
        Numbers of flows: one of these it shall be.

    Returns
    -------
    int
        Its number. If it cannot begin yet, then others that share no way with it may.
    """
    load_s: dict[Hashable, float] = {}
    for flow in flows:
        for copy in flow.copies:
            for way, seconds in zip(flow.ways, copy, strict=True):
                load_s[way] = load_s.get(way, 0.0) + seconds
    some = [number for number, flow in enumerate(flows) if flow.copies and (among is None or number in among)]
    n_copies = sum(len(flow.copies) for flow in flows)
    if len(_RULES) * len(some) ** 2 * n_copies > _MOST_STEPS:
        left = [len(flow.copies) if number in some else 0 for number, flow in enumerate(flows)]
        return _next(flows, left, free_at, last, load_s, _RULES[-1])

    def rank(number: int) -> tuple[float, float, float]:
        last_at, sum_at = min(_ends(flows, number, free_at, last, load_s, rule) for rule in _RULES)
        return last_at, max(free_at[way] for way in flows[number].ways), sum_at

    return min(some, key=rank)


def _ends(
    flows: Sequence[Flow],
    first: int,
    free_at: Mapping[Hashable, float],
    last: Mapping[Hashable, int],
    load_s: Mapping[Hashable, float],
    rule: Callable[[float, float], float],
) -> tuple[float, float]:
    """When the last copy has come, if one of this flow comes first, and by a rule after that; and the sum for all."""
    free, before, load = dict(free_at), dict(last), dict(load_s)
    left = [len(flow.copies) for flow in flows]
    last_at, sum_at, number = 0.0, 0.0, first
    while True:
        flow = flows[number]
        copy = len(flow.copies) - left[number]
        at = flow.take(number, free, before, copy)
        last_at, sum_at = max(last_at, at), sum_at + at
        for way, seconds in zip(flow.ways, flow.copies[copy], strict=True):
            load[way] -= seconds
        left[number] -= 1
        if not any(left):
            return last_at, sum_at
        number = _next(flows, left, free, before, load, rule)


def _next(
    flows: Sequence[Flow],
    left: Sequence[int],
    free_at: Mapping[Hashable, float],
    last: Mapping[Hashable, int],
    load_s: Mapping[Hashable, float],
    rule: Callable[[float, float], float],
) -> int:
    """Whose turn it is by a rule."""
    best, least = -1, float("inf")
    for number, flow in enumerate(flows):
        if left[number]:
            rank = rule(flow.begins(number, free_at, last), max([load_s[way] for way in flow.ways]))
            if best < 0 or rank < least:
                best, least = number, rank
    return best
