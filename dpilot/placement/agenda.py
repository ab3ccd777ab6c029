"""Where the lines run that lack data, so that the ways to bring it and the places to run it have little to do.

What is brought for one line may serve others, and what each of them needs least may give one way more than its part of
the work. So a place is looked for for each of the lines, such that what the ways and the places have to do, in seconds,
is little, and about as much for each: the sum of its fourth powers is small, in which the longest counts most. In that,
ways with little to do would count for nothing, and any copy would be as good as none: so a second of them has a price,
the higher the more the places have to do beside the ways.

The search is a local one: every line in turn is given the place that adds the least; then one copy, or one link, is
left out and the lines that use it are given other places, and that is kept if it is better. It goes on where it was the
last time, and changes then only what is clearly better so: estimates vary, and what was brought would be in vain.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

__all__ = ["Agenda", "Copy", "Venue"]

#: How many copies are left out, by turns, each time that the agenda is revised; fewer, if more venues than this would
#: be looked at.
_MOST_LEFT_OUT, _MOST_LOOKED_AT = 24, 4000
#: How often all lines are gone through, until none is better off elsewhere.
_MOST_ROUNDS = 4
#: Of what the sum over ways and places is to be small.
_POWER = 4
#: What is less by no more than this part is no better; and for lines that all have a place already.
_SLIGHTLY, _CLEARLY = 1e-9, 0.1

K = TypeVar("K", bound=Hashable)
P = TypeVar("P", bound=Hashable)


class Copy(NamedTuple):
    """Something that has to be brought: an id, and how many seconds it takes of what."""

    id: Hashable
    takes: tuple[tuple[Hashable, float], ...]


class Venue(NamedTuple, Generic[P]):
    """A place, how many seconds of it running takes, and what has to be brought there."""

    place: P
    run_s: float
    copies: tuple[Copy, ...]


class Agenda(Generic[K, P]):
    """Who is to run where.

    Attributes
    ----------
    given : dict
        By place: who is to run there.
    """

    def __init__(self) -> None:
        self.given: dict[P, list[K]] = {}
        self._turn = 0

    def forget(self) -> None:
        """Nobody has a place."""
        self.given.clear()

    def revise(self, options: Mapping[K, Sequence[Venue[P]]], busy_s: Mapping[Hashable, float]) -> dict[K, int]:
        """Find a place for each.

        Parameters
        ----------
        options : mapping
            Whoever needs a place, and where it could be.
        busy_s : mapping
            How many seconds of work each way and each place has, apart from what it is given here.

        Returns
        -------
        dict
            By the same keys: which of the options it is.
        """
        kept = {key: place for place, keys in self.given.items() for key in keys}
        before = [
            next((n for n, option in enumerate(found) if option.place == kept.get(key)), None)
            for key, found in options.items()
        ]
        search = _Search(options.values(), busy_s, _SLIGHTLY if None in before else _CLEARLY)
        search.begin(before)
        n_looked_at = 2 * sum(map(len, options.values()))  # each time, at the least
        self._turn = search.improve(self._turn, min(_MOST_LEFT_OUT, _MOST_LOOKED_AT // max(1, n_looked_at)))
        self.forget()
        for (key, found), number in zip(options.items(), search.chosen, strict=True):
            self.given.setdefault(found[number].place, []).append(key)
        return dict(zip(options, search.chosen, strict=True))


class _Search:
    """A place for each line, by numbers."""

    def __init__(
        self, options: Iterable[Sequence[Venue[Any]]], busy_s: Mapping[Hashable, float], better: float
    ) -> None:
        self.better = better  # by what part a change must be better
        lanes: dict[Hashable, int] = {}
        copies: dict[Hashable, int] = {}
        self.takes: list[list[tuple[int, float]]] = []  # by copy
        self.options: list[list[tuple[int, float, tuple[int, ...]]]] = []  # by line
        for found in options:
            own = []
            for option in found:
                numbers = []
                for copy in option.copies:
                    if copy.id not in copies:
                        copies[copy.id] = len(copies)
                        self.takes.append([(lanes.setdefault(on, len(lanes)), seconds) for on, seconds in copy.takes])
                    numbers.append(copies[copy.id])
                each = tuple(dict.fromkeys(numbers))  # one may be named twice
                own.append((lanes.setdefault(option.place, len(lanes)), option.run_s, each))
            self.options.append(own)
        self.load = [busy_s.get(lane, 0.0) for lane in lanes]
        self.prices = [0.0] * len(self.takes)  # by copy
        self.users: list[set[int]] = [set() for _ in copies]
        self.chosen: list[int] = [-1] * len(self.options)

    def begin(self, before: Sequence[int | None]) -> None:
        """Give each the place that it had, or else the best one."""
        for line, option in enumerate(before):
            if option is not None:
                self._put(line, option)
        for line, option in enumerate(before):
            if option is None:
                self._put(line, self._best(line))
        self._set_prices()
        self._settle()

    def _set_prices(self) -> None:
        """A second of the ways costs what one more of a place does that has to do what places have beyond the ways."""
        places = {place for options in self.options for place, _, _ in options}
        ways_s = max((load for lane, load in enumerate(self.load) if lane not in places), default=0.0)
        beyond_s = sum(self.load[place] for place in places) / max(1, len(places)) - ways_s
        second = _POWER * max(0.0, beyond_s) ** (_POWER - 1)
        self.prices = [second * sum(seconds for _, seconds in takes) for takes in self.takes]

    def improve(self, turn: int, most: int) -> int:
        """Leave out copies, by turns; gives whose turn it is then."""
        cost = self._cost()
        for _ in range(min(most, len(self.users))):
            turn = (turn + 1) % len(self.users)
            users = sorted(self.users[turn])
            if not users or not all(self._can_do_without(line, turn) for line in users):
                continue
            before = list(self.chosen)
            for line in users:
                self._take(line)
            for line in users:
                self._put(line, self._best(line, without=turn))
            self._settle()
            found = self._cost()
            if found < cost * (1 - self.better):
                cost = found
                continue
            for line, option in enumerate(before):
                if self.chosen[line] != option:
                    self._take(line)
                    self._put(line, option)
        return turn

    def _can_do_without(self, line: int, copy: int) -> bool:
        return any(copy not in copies for _, _, copies in self.options[line])

    def _cost(self) -> float:
        paid = sum(price for price, users in zip(self.prices, self.users, strict=True) if users)
        return sum(load**_POWER for load in self.load) + paid

    def _settle(self) -> None:
        """Give each the place that is the best one with all others where they are, until none changes."""
        for _ in range(_MOST_ROUNDS):
            is_settled = True
            for line, before in enumerate(self.chosen):
                self._take(line)
                best = self._best(line, first=before)
                self._put(line, best)
                is_settled &= best == before
            if is_settled:
                return

    def _best(self, line: int, first: int = 0, without: int = -1) -> int:
        """The place that adds the least; `first`, if others add as much."""
        best, least = first, float("inf")
        for number, (_, _, copies) in enumerate(self.options[line]):
            if without in copies:
                continue
            adds = self._adds(line, number)
            if number == first:
                adds *= 1 - self.better
            if adds < least * (1 - _SLIGHTLY) or (number == first and adds <= least * (1 + _SLIGHTLY)):
                best, least = number, adds
        return best

    def _adds(self, line: int, option: int) -> float:
        place, run_s, copies = self.options[line][option]
        load = self.load
        adds = (load[place] + run_s) ** _POWER - load[place] ** _POWER
        added: dict[int, float] = {}
        for copy in copies:
            if not self.users[copy]:
                adds += self.prices[copy]
                for lane, seconds in self.takes[copy]:
                    more = added.get(lane, 0.0)
                    adds += (load[lane] + more + seconds) ** _POWER - (load[lane] + more) ** _POWER
                    added[lane] = more + seconds
        return adds

    def _put(self, line: int, option: int) -> None:
        self.chosen[line] = option
        place, run_s, copies = self.options[line][option]
        self.load[place] += run_s
        for copy in copies:
            if not self.users[copy]:
                for lane, seconds in self.takes[copy]:
                    self.load[lane] += seconds
            self.users[copy].add(line)

    def _take(self, line: int) -> None:
        place, run_s, copies = self.options[line][self.chosen[line]]
        self.load[place] -= run_s
        for copy in copies:
            self.users[copy].discard(line)
            if not self.users[copy]:
                for lane, seconds in self.takes[copy]:
                    self.load[lane] -= seconds
