"""Where lines run that lack data: the ways and the places have little to do, and about as much each."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpilot.placement import agenda as agenda_module
from dpilot.placement.agenda import Agenda, Copy, Venue

SITES = ("eu", "us", "ap")


def copy(du: str, home: str, site: str, seconds: float = 1.0) -> Copy:
    return Copy((du, site), ((f"from {home}", seconds), (f"to {site}", seconds)))


def options(homes: dict[str, str], inputs: tuple[str, ...], run_s: float = 0.0) -> list[Venue[str]]:
    """Where a line may run that reads data units with these homes."""
    return [
        Venue(site, run_s, tuple(copy(du, homes[du], site) for du in inputs if homes[du] != site)) for site in SITES
    ]


def longest(found: dict[str, list[Venue[str]]], chosen: dict[str, int], busy_s: dict[str, float]) -> float:
    """What the longest of the ways and places has to do."""
    load = dict(busy_s)
    copies: dict[object, Copy] = {}
    for line, number in chosen.items():
        option = found[line][number]
        load[str(option.place)] = load.get(str(option.place), 0.0) + option.run_s
        copies.update((each.id, each) for each in option.copies)
    for each in copies.values():
        for way, seconds in each.takes:
            load[str(way)] = load.get(str(way), 0.0) + seconds
    return max(load.values())


def n_copies(found: dict[str, list[Venue[str]]], chosen: dict[str, int]) -> int:
    return len({each.id for line, number in chosen.items() for each in found[line][number].copies})


def test_what_serves_many_is_brought_and_not_one_thing_for_each() -> None:
    """Three lines read `a`, each with something else from elsewhere: it is `a` that travels."""
    homes = {"a": "eu", "b": "us", "c": "us", "d": "us"}
    found = {du: options(homes, ("a", du)) for du in "bcd"}
    chosen = Agenda[str, str]().revise(found, {})
    assert {found[du][chosen[du]].place for du in "bcd"} == {"us"}
    assert n_copies(found, chosen) == 1


def test_a_third_place_is_taken_if_the_data_comes_there_anyway() -> None:
    homes = {"a": "eu", "b": "us", **{f"x{n}": "ap" for n in range(3)}}
    found = {f"a{n}": options(homes, ("a", f"x{n}")) for n in range(3)}
    found |= {f"b{n}": options(homes, ("b", f"x{n}")) for n in range(3)}
    found["ab"] = options(homes, ("a", "b"))
    chosen = Agenda[str, str]().revise(found, {})
    assert found["ab"][chosen["ab"]].place == "ap"
    assert n_copies(found, chosen) == 2


def test_no_way_and_no_place_is_given_more_than_its_part() -> None:
    homes = {f"du{n}": "us" for n in range(6)}
    found = {du: [option for option in options(homes, (du,)) if option.place != "us"] for du in homes}
    agenda = Agenda[str, str]()
    places = [found[du][number].place for du, number in agenda.revise(found, {}).items()]
    assert sorted(places) == ["ap"] * 3 + ["eu"] * 3
    agenda = Agenda[str, str]()
    places = [found[du][number].place for du, number in agenda.revise(found, {"to ap": 4.0}).items()]
    assert sorted(places) == ["ap"] + ["eu"] * 5


@pytest.mark.parametrize("seconds", [1e-3, 1e-2, 0.3])
def test_a_copy_has_a_price_where_the_ways_have_little_to_do(seconds: float) -> None:
    """Two lines read `a` and `b`, two `c` and `d`: who reads the same goes to the same place."""
    homes = {"a": "eu", "b": "us", "c": "eu", "d": "us"}
    found = {
        line: [
            Venue(site, 1.0, tuple(copy(du, homes[du], site, seconds) for du in inputs if homes[du] != site))
            for site in ("eu", "us")
        ]
        for line, inputs in {"ab0": "ab", "ab1": "ab", "cd0": "cd", "cd1": "cd"}.items()
    }
    chosen = Agenda[str, str]().revise(found, {})
    assert chosen["ab0"] == chosen["ab1"] != chosen["cd0"] == chosen["cd1"]
    assert n_copies(found, chosen) == 2


def test_who_has_a_place_keeps_it_if_another_one_is_no_better() -> None:
    homes = {f"du{n}": "us" for n in range(6)}
    found = {du: [option for option in options(homes, (du,)) if option.place != "us"] for du in homes}
    agenda = Agenda[str, str]()
    first = agenda.revise(found, {})
    for _ in range(10):
        assert agenda.revise(found, {}) == first
    del found["du0"]
    left = agenda.revise(found, {"to " + str(options(homes, ("du0",))[first["du0"]].place): 1.0})
    assert left == {du: number for du, number in first.items() if du != "du0"}


def test_what_is_the_same_is_decided_alike() -> None:
    homes = {f"du{n}": SITES[n % 3] for n in range(12)}
    found = {f"{n}": options(homes, (f"du{n}", f"du{(5 * n + 4) % 12}"), 0.1) for n in range(12)}
    assert Agenda[str, str]().revise(found, {}) == Agenda[str, str]().revise(dict(found), {})


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=5),
    st.dictionaries(st.sampled_from([*SITES, "from eu", "to us"]), st.floats(0, 3)),
)
def test_it_is_close_to_the_best_that_there_is(pairs: list[tuple[int, int]], busy_s: dict[str, float]) -> None:
    homes = {f"du{n}": SITES[n % 3] for n in range(6)}
    found = {str(n): options(homes, (f"du{a}", f"du{b}") if a != b else (f"du{a}",)) for n, (a, b) in enumerate(pairs)}
    agenda = Agenda[str, str]()
    for _ in range(3):
        chosen = agenda.revise(found, busy_s)
    assert chosen.keys() == found.keys()
    all_of_them = (dict(zip(found, numbers, strict=True)) for numbers in product(range(3), repeat=len(found)))
    best = min(longest(found, each, busy_s) for each in all_of_them)
    assert longest(found, chosen, busy_s) <= best + 1.0  # one copy more


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_it_is_the_same_for_short_and_for_long_work(scale: float) -> None:
    homes = {f"du{n}": SITES[n % 3] for n in range(9)}

    def cycle(scale: float) -> dict[str, list[Venue[str]]]:
        return {
            du: [
                Venue(
                    site,
                    0.1 * scale,
                    tuple(copy(each, homes[each], site, scale) for each in both if homes[each] != site),
                )
                for site in SITES
            ]
            for du, both in ((f"du{n}", (f"du{n}", f"du{(n + 4) % 9}")) for n in range(9))
        }

    assert Agenda[str, str]().revise(cycle(scale), {}) == Agenda[str, str]().revise(cycle(1.0), {})


def test_a_copy_that_is_named_twice_is_brought_once() -> None:
    """Of two files of one site, both begin with the same link; one data unit may be read twice."""
    link = Copy(("us", "eu"), (("to eu", 0.5),))
    both = tuple(Copy((du, "eu"), (("to eu", 1.0),)) for du in "ab")
    found = {
        n: [Venue("eu", 0.0, (*both, link, link, both[0])), Venue("ap", 0.0, (Copy(n, (("x", 9.0),)),))] for n in "123"
    }
    agenda = Agenda[str, str]()
    for _ in range(5):
        assert agenda.revise(found, {}) == {"1": 0, "2": 0, "3": 0}
    search = agenda_module._Search(found.values(), {}, 0.0)
    search.begin([None, None, None])
    search.improve(0, 10)
    assert sorted(search.load) == pytest.approx([0.0, 0.0, 0.0, 2.5])


def test_a_place_is_kept_unless_another_one_is_clearly_better() -> None:
    homes = {f"du{n}": "us" for n in range(5)}
    found = {du: [option for option in options(homes, (du,)) if option.place != "us"] for du in homes}
    agenda = Agenda[str, str]()
    first = agenda.revise(found, {"to eu": 2.0})
    assert agenda.revise(found, {"to eu": 1.95, "to ap": 0.05}) == first
    assert agenda.revise(found, {"to eu": 0.0, "to ap": 4.0}) != first
