"""In which order copies come: the last one soon, and no way without anything to do that others wait for."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpilot.placement import sequence
from dpilot.placement.sequence import Flow, foremost

SITES = ("eu", "us", "ap")
LINKS = [(source, target) for source in SITES for target in SITES if source != target]
IDLE = dict.fromkeys([f"{end} {site}" for end in ("from", "to") for site in SITES], 0.0)


def flows(numbers: dict[tuple[str, str], int], begins_s: float = 0.0, seconds: float = 1.0) -> list[Flow]:
    """So many copies over each link, which take a second each."""
    return [
        Flow((f"from {source}", f"to {target}"), [(seconds, seconds)] * n, begins_s)
        for (source, target), n in numbers.items()
    ]


def all_of(made: list[Flow], free_at: dict[object, float] | None = None) -> tuple[float, list[int]]:
    """Have all copies brought, one chosen after the other: when the last one is there, and the flows in turn."""
    free, last = dict(free_at or IDLE), dict.fromkeys(IDLE, -1)
    ends, order = 0.0, []
    while any(flow.copies for flow in made):
        number = foremost(made, free, last)
        flow = made[number]
        ends = max(ends, flow.take(number, free, last))
        made[number] = flow._replace(copies=flow.copies[1:])
        order.append(number)
    return ends, order


def test_there_and_back_does_not_keep_a_third_from_both() -> None:
    """Two of each pair have as much to do as the third: with it they are done in four turns, without it in more."""
    ends, _ = all_of(flows(dict.fromkeys(LINKS, 2)))
    assert ends == 4.0


def test_a_link_goes_on_as_long_as_it_has_something() -> None:
    """To begin with another one costs: in a ring, and back, it is done once."""
    ring, back = (("eu", "us"), ("us", "ap"), ("ap", "eu")), (("us", "eu"), ("ap", "us"), ("eu", "ap"))
    made = flows({**dict.fromkeys(ring, 3), **dict.fromkeys(back, 2)}, begins_s=0.5)
    ends, _ = all_of(made)
    assert ends == 0.5 + 3 + 0.5 + 2


def test_what_is_busy_for_long_is_waited_for_by_those_who_need_it_only() -> None:
    free_at: dict[object, float] = {**IDLE, "to us": 10.0}
    made = flows({("eu", "us"): 1, ("eu", "ap"): 2})
    assert all_of(made, free_at) == (11.0, [1, 1, 0])


def test_of_equal_ones_the_first_is_taken_and_those_without_copies_are_not() -> None:
    made = flows({("eu", "us"): 0, ("us", "ap"): 1, ("ap", "eu"): 1})
    assert foremost(made, IDLE, dict.fromkeys(IDLE, -1)) == 1


@given(st.lists(st.integers(0, 2), min_size=6, max_size=6).filter(lambda numbers: 0 < sum(numbers) <= 6))
def test_it_is_as_good_as_any_order(numbers: list[int]) -> None:
    made = flows(dict(zip(LINKS, numbers, strict=True)), begins_s=0.25)
    copies = [number for number, flow in enumerate(made) for _ in flow.copies]
    best = float("inf")
    for order in set(permutations(copies)):
        free, last = dict(IDLE), dict.fromkeys(IDLE, -1)
        best = min(best, max(made[number].take(number, free, last) for number in order))
    ends, _ = all_of(made)
    assert ends == best


@pytest.mark.parametrize("most", [0, 10_000])
def test_with_much_to_do_it_takes_less_thought(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(sequence, "_MOST_STEPS", most)
    ends, order = all_of(flows(dict.fromkeys(LINKS, 3)))
    assert len(order) == 18
    assert 6.0 <= ends <= (9.0 if most == 0 else 6.0)
