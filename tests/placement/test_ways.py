"""Ways: transfers that follow one another, and what is learned of how many at a time are worth while."""

from __future__ import annotations

import pytest

from dpilot.placement import Links, Site
from dpilot.placement.ways import EARLY_S, NOTABLE, Way

MB = 10**6
LATENCY_S = 0.04


def send(way: Way, now: float, seconds: float, *, shared: float = 1.0) -> float:
    """A transfer of 10 MB over a way of `10 MB / seconds`, begun at `now` as soon as the one before: when it ends."""
    way.begin(now, LATENCY_S, 10 * MB / way.rate(10 * MB / seconds))
    ends = now + LATENCY_S + seconds * shared
    way.learn(ends, 10 * MB, 10 * MB / (seconds * shared), way.beside(ends, seconds * shared))
    way.end(ends)
    return ends


def test_of_an_unknown_way_one_transfer_at_a_time_is_tried() -> None:
    way = Way()
    assert way.room_at(LATENCY_S, 1.0) == 0.0
    way.begin(0.0, LATENCY_S, 1.0)
    assert way.room_at(LATENCY_S, 1.0) is None
    way.end(5.0)
    assert way.room_at(LATENCY_S, 1.0) == 0.0


def test_each_begins_when_the_one_before_has_been_sent() -> None:
    way = Way()
    now = send(way, 0.0, 1.0)
    assert way.rate(1.0) == pytest.approx(10 * MB)
    way.begin(now, LATENCY_S, 1.0)
    assert way.room_at(LATENCY_S, 1.0) == pytest.approx(now + 1.0)
    assert way.wait_s(now + 0.25) == pytest.approx(0.75)
    way.begin(now + 1.0, LATENCY_S, 1.0)
    assert way.room_at(LATENCY_S, 1.0) is None, "one, and the next"
    way.end(now + 1.0 + LATENCY_S)
    assert way.room_at(LATENCY_S, 1.0) == pytest.approx(now + 2.0)
    way.end(now + 1.5)
    assert way.wait_s(now + 1.5) == 0.0, "it ended early"


@pytest.mark.parametrize(("seconds", "early_s"), [(0.5, 0.5), (60.0, EARLY_S)])
def test_over_the_same_link_the_next_one_is_early_for_it_takes_the_connections_of_the_one_before(
    seconds: float, early_s: float
) -> None:
    way, link, other = Way(), object(), object()
    now = send(way, 0.0, seconds)
    way.begin(now, LATENCY_S, seconds, link)
    assert way.room_at(LATENCY_S, seconds, link) == pytest.approx(now + seconds - early_s)
    assert way.room_at(LATENCY_S, seconds, other) == pytest.approx(now + seconds)
    assert way.soonest_at() == pytest.approx(now + seconds - early_s)
    way.begin(now, LATENCY_S, seconds, link)
    assert way.room_at(LATENCY_S, seconds, link) is None, "one, and the next"


def test_what_ends_sooner_than_was_thought_lets_the_next_ones_begin_sooner() -> None:
    way = Way()
    now = send(way, 0.0, 1.0)
    way.begin(now, LATENCY_S, 1.0)
    way.begin(now + 0.9, LATENCY_S, 1.0)
    assert way.wait_s(now + 0.9) == pytest.approx(1.1)
    way.end(now + 0.9)
    assert way.wait_s(now + 0.9) == pytest.approx(1.0), "the second takes no longer than was thought"
    way.end(now + 3.0)
    assert way.wait_s(now + 3.0) == 0.0


def test_small_ones_are_on_their_way_at_the_same_time() -> None:
    way = Way()
    now = send(way, 0.0, 1.0)
    begun = 0
    while (at := way.room_at(LATENCY_S, 0.01)) is not None:
        now = max(now, at)
        way.begin(now, LATENCY_S, 0.01)
        begun += 1
    assert begun == 5, "4 while the first byte travels, and one that is late"


def test_they_follow_sooner_as_long_as_that_slows_none_down() -> None:
    way, now = Way(), 0.0
    now = send(way, now, 1.0)
    spacing = []
    for _ in range(8):
        way.begin(now, LATENCY_S, 1.0)
        spacing.append(way.free_at - now)
        now = way.free_at
        way.begin(now, LATENCY_S, 1.0)  # the next one is there when this one ends
        way.learn(now, 10 * MB, 10 * MB, 1.0)
        way.end(now)
        way.end(now)
    assert spacing == sorted(spacing, reverse=True)
    assert 0.75 < spacing[-1] < 0.85 < spacing[0]
    way.begin(now, LATENCY_S, 1.0)
    way.learn(now, 10 * MB, 5 * MB, 1.0)
    way.end(now)
    way.begin(now, LATENCY_S, 1.0)
    assert way.free_at - now > spacing[-1], "it was slower"


def chain(way: Way, now: float, number: int) -> float:
    """Transfers one after another."""
    for _ in range(number):
        now = send(way, now, 1.0)
    return now


@pytest.mark.parametrize(("shared", "most"), [(1.0, 2), (2.0, 1)])
def test_one_beside_another_is_tried_at_times(shared: float, most: int) -> None:
    """Two at a time are as fast as one alone, or half as fast: the way carries twice as much, or it does not."""
    way = Way()
    now = chain(way, 0.0, 3)
    way.begin(now, LATENCY_S, 1.0)
    assert way.room_at(LATENCY_S, 1.0) == pytest.approx(way.free_at)
    way.end(now)
    now = chain(way, now, 20)
    way.begin(now, LATENCY_S, 1.0)
    assert way.room_at(LATENCY_S, 1.0) == 0.0, "after so many it is tried"
    for _ in range(8):
        way.begin(now, LATENCY_S, 1.0)
        now += LATENCY_S + shared
        for _ in range(2):
            way.learn(now, 10 * MB, 10 * MB / shared, 2.0)
        way.end(now)
    assert way.rate(1.0) == pytest.approx(most * 10 * MB, rel=0.1)


def test_it_is_counted_how_many_were_there_on_average() -> None:
    way = Way()
    way.begin(0.0, 0.0, 1.0)
    way.begin(1.0, 0.0, 1.0)
    way.end(2.0)
    assert way.beside(2.0, 2.0) == pytest.approx(1.5)
    assert way.beside(2.0, 1.0) == pytest.approx(2.0)
    assert way.beside(9.0, 5.0) == 1.0


def test_what_a_slow_link_shows_is_no_news_of_the_way_out() -> None:
    links, eu, us, lab = Links(), Site("eu"), Site("us"), Site("lab")
    for now, (target, seconds) in enumerate([(us, 1.0), (lab, 100.0)] * 6):
        links.now = 1000.0 * now
        links.begin(eu, target, 100 * MB, 1)
        links.now += seconds
        links.observe(eu, target, 100 * MB, seconds)
        links.end(eu, target)
    links.begin(eu, us, 100 * MB, 1)
    assert links.room_at(eu, lab, MB, 1) == pytest.approx(links.now + 1.0 - links.begins_s(eu, lab, MB), abs=0.3)


def test_what_comes_over_another_link_gets_going_beside_the_one_before() -> None:
    links, eu, us, lab = Links(), Site("eu"), Site("us"), Site("lab")
    for now, target in enumerate((us, lab)):
        links.now = 1000.0 * now
        links.begin(eu, target, 100 * MB, 1)
        links.now += 1.0
        links.observe(eu, target, 100 * MB, 1.0)
        links.end(eu, target)
    links.now = 3000.0
    links.begin(eu, us, 100 * MB, 1)
    begins_s = links.begins_s(eu, lab, 100 * MB)
    assert begins_s > 0.1
    assert links.room_at(eu, lab, 100 * MB, 1) == pytest.approx(3001.0 - begins_s, abs=0.1)
    same = links.room_at(eu, us, 100 * MB, 1)
    assert same is not None
    assert same < 3001.0 - begins_s - 0.1  # it takes the connections of the one before


def test_nothing_begins_sooner_over_another_link_than_there_is_room_for_anything() -> None:
    way = Way()
    way.begin(0.0, 0.0, 0.2, "link")
    soonest_at = way.soonest_at()
    assert soonest_at is not None
    assert way.room_at(0.0, 60.0, "another", is_known=True, begins_s=30.0) == pytest.approx(soonest_at)


def test_a_busy_way_out_is_seen_on_all_links_that_leave() -> None:
    links, eu, us, lab = Links(), Site("eu"), Site("us"), Site("lab")
    alone = links.transfer_s(eu, us, 100 * MB, 1)
    links.begin(eu, lab, 100 * MB, 1)
    assert links.transfer_s(eu, us, 100 * MB, 1) == pytest.approx(2 * alone - links.latency_s[2])
    assert links.transfer_s(lab, us, 100 * MB, 1) == pytest.approx(alone)
    assert NOTABLE > 1
