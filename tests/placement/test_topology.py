import pytest

from dpilot.placement import Distance, InputView, Links, Site, StoreView, choose_stores, nearest_store

EU1, EU2, US1 = Site("eu", "m1"), Site("eu", "m2"), Site("us", "m1")
GB = 10**9


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        (EU1, EU1, Distance.SAME_MACHINE),
        (EU1, EU2, Distance.SAME_DATACENTER),
        (EU1, US1, Distance.OTHER_DATACENTER),
        (EU1, Site("eu"), Distance.SAME_DATACENTER),
        (EU1, Site(machine="m1"), Distance.SAME_MACHINE),
        (Site(machine="m1"), Site(machine="m2"), Distance.SAME_DATACENTER),
        (Site(), EU1, Distance.SAME_DATACENTER),
        (Site(), Site(), Distance.SAME_DATACENTER),
    ],
)
def test_distance_is_what_the_labels_tell_in_both_directions(one, other, distance):
    assert one.distance(other) is distance
    assert other.distance(one) is distance


def test_missed_labels_are_named():
    assert Site().missed_by(EU1) is None
    assert EU1.missed_by(EU1) is None
    assert Site("eu").missed_by(EU2) is None
    assert EU1.missed_by(US1) == "datacenter us is not eu"
    assert EU1.missed_by(EU2) == "machine m2 is not m1"
    assert EU1.missed_by(Site()) == "datacenter without a label is not eu"


def test_links_begin_with_the_prior_and_learn():
    links = Links()
    before = links.transfer_s(EU1, US1, GB, 1)
    assert links.transfer_s(EU1, EU1, GB, 1) < links.transfer_s(EU1, EU2, GB, 1) < before
    for _ in range(30):
        links.observe(EU1, US1, GB, 100.0)
    assert links.transfer_s(EU1, US1, GB, 1) == pytest.approx(100.04, rel=0.01)


def test_what_was_seen_stands_in_for_pairs_that_were_not():
    links = Links()
    for _ in range(30):
        links.observe(EU1, US1, GB, 100.0)
    assert links.transfer_s(US1, EU1, GB, 1) == pytest.approx(100.04, rel=0.01)


def test_an_unseen_pair_is_never_assumed_faster_than_nearer_ones():
    links = Links()
    for _ in range(30):
        links.observe(EU1, EU1, GB, 1000.0)  # the very first reads of a machine are slow
    assert links.transfer_s(EU1, US1, GB, 1) >= links.transfer_s(EU1, EU1, GB, 1)


def test_small_transfers_tell_nothing_of_the_bandwidth():
    links = Links()
    before = links.transfer_s(EU1, US1, GB, 1)
    links.observe(EU1, US1, 1000, 10.0)
    links.observe(EU1, US1, GB, 0.0)
    assert links.transfer_s(EU1, US1, GB, 1) == before


def test_an_input_comes_from_the_replica_that_is_the_cheapest_to_bring():
    links = Links()
    view = InputView("du", GB, 1, (US1, EU2))
    seconds, distance = view.stage(EU1, links)
    assert (seconds, distance) == (links.transfer_s(EU2, EU1, GB, 1), Distance.SAME_DATACENTER)
    assert InputView("du", 0, 0, ()).stage(EU1, links) == (0.0, Distance.OTHER_DATACENTER)


def stores():
    return [StoreView("a", EU1, 100), StoreView("b", US1, None), StoreView("c", EU2, 50), StoreView("d", Site(), 10)]


def test_stores_are_chosen_by_room_label_and_name():
    assert choose_stores(stores(), Site(), 0, 1) == ["a"]
    assert choose_stores(stores(), Site("us"), 0, 1) == ["b"]
    assert choose_stores(stores(), Site("eu"), 80, 1) == ["a"]
    assert choose_stores(stores(), Site("eu"), 1000, 1) == ["b"]  # a wish gives way to room


def test_replicas_are_spread_over_datacenters_first():
    assert choose_stores(stores(), Site("eu"), 5, 3) == ["a", "b", "d"]
    assert choose_stores(stores(), Site("eu"), 5, 9) == ["a", "b", "d", "c"]
    assert choose_stores([], Site(), 5, 2) == []


def test_the_nearest_store_with_room():
    assert nearest_store(stores(), US1) == "b"
    assert nearest_store(stores(), Site("eu", "m2")) == "c"
    assert nearest_store([StoreView("a", EU1, 0)], EU1) is None
