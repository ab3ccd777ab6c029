import pytest

from dpilot.placement import Distance, InputView, Links, Site, StatedLink, StoreView, choose_stores, nearest_store

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


def test_small_transfers_tell_the_latency_and_nothing_of_the_bandwidth():
    links = Links()
    before = links.transfer_s(EU1, US1, GB, 0)
    for _ in range(30):
        links.observe(EU1, US1, 1000, 0.3)
    links.observe(EU1, US1, GB, 0.0)
    assert links.transfer_s(EU1, US1, GB, 0) == before
    assert links.transfer_s(EU1, US1, 1000, 4) == pytest.approx(1.2, rel=0.01)


def test_machines_share_what_is_between_their_datacenters():
    links = Links()
    for _ in range(30):
        links.observe(EU1, US1, GB, 100.0)
    assert links.transfer_s(EU2, Site("us", "m7"), GB, 1) == links.transfer_s(EU1, US1, GB, 1)
    assert links.transfer_s(EU1, Site("lab"), 10, 1) < 1.0


def test_transfers_on_a_link_are_counted():
    links = Links()
    alone = links.transfer_s(EU1, US1, GB, 0)
    links.begin(EU1, US1, GB, 0)
    links.begin(EU2, US1, GB, 0)
    assert links.transfer_s(EU1, US1, GB, 0) == pytest.approx(3 * alone)
    assert links.transfer_s(EU1, US1, GB, 0, alone=True) == alone
    assert links.transfer_s(US1, EU1, GB, 0) == alone  # the other direction
    links.end(EU1, US1)
    links.end(EU2, US1)
    links.end(EU2, US1)
    assert links.transfer_s(EU1, US1, GB, 0) == alone


def test_inside_of_a_datacenter_there_is_room_until_shown_otherwise():
    links = Links()
    alone = links.transfer_s(EU1, EU2, GB, 0)
    for _ in range(4):
        links.begin(EU1, EU2, GB, 0)
    assert links.transfer_s(EU1, EU2, GB, 0) == alone
    links.now = 4 * alone
    for _ in range(30):
        links.observe(EU1, EU2, GB, 4 * alone)
    assert links.transfer_s(EU1, EU2, GB, 0) == pytest.approx(5 * alone, rel=0.1)


def test_what_all_get_together_is_learned_apart_from_what_one_gets():
    """Four at a time get 25 MB/s each: the link carries 100 MB/s, and one alone gets no more than what was assumed."""
    links = Links()
    for _ in range(4):
        links.begin(EU1, US1, GB, 0)
    links.now = 40.0
    for _ in range(30):
        links.observe(EU1, US1, GB, 40.0)
    assert links.transfer_s(EU1, US1, GB, 0) == pytest.approx(50.0, rel=0.05)  # the fifth
    for _ in range(4):
        links.end(EU1, US1)
    (row,) = links.table()
    assert row.capacity_bytes_per_s == pytest.approx(1e8, rel=0.01)


def test_stated_links_hold_in_both_directions_until_transfers_tell():
    links = Links(stated=[StatedLink("eu", "us", 1e6, 0.5), StatedLink("us", "eu", 2e6)])
    assert links.transfer_s(EU1, US1, 10**6, 1) == pytest.approx(1.5)
    assert links.transfer_s(US1, EU1, 10**6, 1) == pytest.approx(1.0)
    for _ in range(30):
        links.observe(EU1, US1, 10**7, 1.5)
    assert links.transfer_s(EU1, US1, 10**7, 1) == pytest.approx(1.5, rel=0.05)


def test_predictions_are_compared_with_what_happened():
    links = Links()
    predicted = links.transfer_s(EU1, US1, GB, 1)
    links.observe(EU1, US1, GB, 2 * predicted)
    row = next(row for row in links.table() if row.source == "eu" and row.target == "us")
    assert (row.n, row.ratio, row.predicted_s, row.actual_s) == (1, 2.0, predicted, 2 * predicted)
    for _ in range(40):
        links.observe(EU1, US1, GB, 2 * predicted)
    assert links.table()[0].ratio == pytest.approx(1.0, rel=0.01)


def test_another_version_when_an_estimate_changes_notably():
    links = Links()
    links.observe(EU1, US1, GB, 20.0)
    version = links.version
    for _ in range(5):
        links.observe(EU1, US1, GB, 20.0)
    assert links.version == version
    for _ in range(5):
        links.observe(EU1, US1, GB, 200.0)
    assert links.version > version


def test_an_input_comes_from_the_replica_that_is_the_cheapest_to_bring():
    links = Links()
    view = InputView("du", GB, 1, (US1, EU2))
    seconds, distance = view.stage(EU1, links)
    assert (seconds, distance) == (links.transfer_s(EU2, EU1, GB, 1), Distance.SAME_DATACENTER)
    assert InputView("du", 0, 0, ()).stage(EU1, links) == (0.0, Distance.OTHER_DATACENTER)


def test_a_store_far_away_comes_before_a_cache_as_far():
    """A cache that is near is as good as a store; one in another datacenter is not, unless it would be much sooner."""
    links, ap = Links(), Site("ap", "a")
    view = InputView("du", GB, 1, (US1, EU1), stored=1)
    assert view.source(ap, links) == US1
    assert view.source(EU2, links) == EU1
    links.begin(US1, Site("lab", "l"), GB, 1)
    assert view.source(ap, links) == EU1, "the way from the store is taken, for as long again"
    assert InputView("du", GB, 1, (US1, EU1)).source(ap, Links()) == US1
    assert view.stage(ap, Links())[0] == Links().transfer_s(US1, ap, GB, 1)


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


def test_that_an_unknown_link_does_not_give_more_is_not_to_know_what_it_gives():
    links = Links()
    links.begin(EU1, US1, GB, 1)
    doubt = links.doubt(EU1, US1, GB)
    links.overdue(EU1, US1, GB, 40.0)
    assert links.transfer_s(EU1, US1, GB, 1, alone=True) == pytest.approx(40.0, rel=0.01)
    assert links.doubt(EU1, US1, GB) == doubt > 1
    assert links.room_at(EU1, US1, GB, 1) is None
    links.now = 100.0
    links.observe(EU1, US1, GB, 100.0)
    assert links.transfer_s(EU1, US1, GB, 1, alone=True) == pytest.approx(100.0, rel=0.01)
    assert links.doubt(EU1, US1, GB) == 1.0
    assert links.room_at(EU1, US1, GB, 1) is not None


def test_of_small_transfers_it_is_the_latency_that_has_to_be_known():
    links = Links()
    assert links.doubt(EU1, US1, 1000) > 1
    links.observe(EU1, US1, 1000, 0.1)
    assert links.doubt(EU1, US1, 1000) == 1.0
    assert links.doubt(EU1, US1, GB) > 1


def test_it_is_known_over_which_link_the_last_transfer_came():
    links = Links()
    (_, _), (out, _), (into, _) = links.ways(EU1, US1, GB)
    assert not links.came_last(out, "eu", "us")
    links.begin(EU1, US1, GB, 1)
    assert links.came_last(out, "eu", "us")
    assert links.came_last(into, "eu", "us")
    links.begin(EU1, Site("lab"), GB, 1)
    assert not links.came_last(out, "eu", "us")
    assert links.came_last(out, "eu", "lab")
    assert links.came_last(into, "eu", "us")


def test_files_that_are_moved_at_the_same_time_share_the_latency():
    links = Links(stated=[StatedLink("eu", "us", 1e6, 0.5)], files_at_once=8)
    assert [links.transfer_s(EU1, US1, 10**6, n) for n in (1, 8, 9, 20)] == pytest.approx([1.5, 1.5, 2.0, 2.5])
    for _ in range(40):
        links.observe(EU1, US1, 1000, 3 * 0.2, n_files=20)
    assert links.transfer_s(EU1, US1, 0, 1) == pytest.approx(0.2, rel=0.01)


def test_what_units_write_tells_of_the_bandwidth_as_far_as_it_is_known_beside_what():
    """Four at a time get 25 MB/s each of a link that carries 100; one alone shows all of what it gets."""
    links = Links(bandwidth_bytes_per_s={**dict.fromkeys(Distance, 1e9)})
    for _ in range(4):
        links.begin_output(EU1, US1)
    links.now = 40.0
    for _ in range(4):
        links.observe_output(EU1, US1, GB, 40.0)
        links.end_output(EU1, US1)
    assert links.transfer_s(EU1, US1, GB, 0, alone=True) == pytest.approx(10.0, rel=0.01)
    links.begin_output(EU1, US1)
    links.now = 80.0
    links.observe_output(EU1, US1, GB, 20.0)
    assert 10.0 < links.transfer_s(EU1, US1, GB, 0, alone=True) < 20.0
    before = links.transfer_s(EU1, US1, 1, 1)
    links.observe_output(EU1, US1, 1000, 5.0)
    assert links.transfer_s(EU1, US1, 1, 1) == before
