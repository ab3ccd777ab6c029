"""The cost of each pilot: what is rejected and why, and what beats what."""

import pytest

from dpilot.placement import Decision, InputView, PilotView, Policy, Request, Row, Site

EU, US = Site("eu", "m1"), Site("us", "m2")
MB = 10**6


def pilot(name, site=EU, slots=2, free=2, backlog_s=0.0):
    return PilotView(name, site, slots, free, backlog_s)


def order(request, *pilots, inputs=(), members=None):
    """The names of the pilots that can run a request, the best first."""
    rows = Policy().rank(request, pilots, {view.id: view for view in inputs}, members)
    return [row.pilot for row in rows if row.verdict == "possible"]


def at(site, nbytes=100 * MB):
    return InputView("du", nbytes, 1, (site,))


READS = Request("cds", inputs=("du",))


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("cds", pilot="other"), "the unit was submitted to other"),
        (Request("cds", site=US, require=True), "required, but datacenter eu is not us"),
        (Request("cds", site=Site("eu", "m9"), require=True), "required, but machine m1 is not m9"),
        (Request("cds", slots=3), "3 slots are needed, it has 2"),
        (Request("cds", site=US), ""),
        (Request("cds", slots=2), ""),
        (Request("cds", pilot="eu"), ""),
    ],
)
def test_who_is_rejected_and_why(request_, reason):
    row = Policy().row(request_, pilot("eu"), ())
    assert (row.verdict, row.reason) == ("rejected" if reason else "possible", reason)


def test_pilots_outside_of_the_pool_are_rejected_unless_named():
    view = pilot("eu")
    (row,) = Policy().rank(Request("cds"), [view], {}, {"us"})
    assert (row.verdict, row.reason) == ("rejected", "it belongs to no service of this compute data service")
    assert order(Request("cds", pilot="eu"), view, members={"us"}) == ["eu"]


def test_the_least_loaded_comes_first_then_the_first_by_name():
    assert order(Request("cds"), pilot("b"), pilot("c"), pilot("a", backlog_s=1.0)) == ["b", "c", "a"]


def test_load_is_counted_per_slot():
    assert order(Request("cds"), pilot("large", slots=10, backlog_s=5.0), pilot("small", slots=1, backlog_s=1.0)) == [
        "large",
        "small",
    ]
    assert pilot("none", slots=0, backlog_s=1.0).load == 0.0


def test_data_beats_load():
    assert order(READS, pilot("eu", EU, backlog_s=9.0), pilot("us", US), inputs=[at(EU)]) == ["eu", "us"]


def test_a_queue_longer_than_the_transfer_beats_data():
    swamped = pilot("eu", EU, free=0, backlog_s=100.0)
    assert order(READS, swamped, pilot("us", US), inputs=[at(EU)]) == ["us", "eu"]
    assert order(READS, swamped, pilot("us", US), inputs=[at(EU, 100_000 * MB)]) == ["eu", "us"]


def test_a_free_slot_comes_before_a_queue_of_no_length():
    assert order(Request("cds"), pilot("a", free=0), pilot("b")) == ["b", "a"]


def test_every_input_counts_from_its_nearest_replica():
    inputs = [InputView("du", 300 * MB, 1, (US, EU)), InputView("other", 100 * MB, 1, (US,))]
    (row,) = Policy().rank(
        Request("cds", inputs=("du", "other")), [pilot("eu")], {view.id: view for view in inputs}, None
    )
    assert row.nbytes == (300 * MB, 0, 100 * MB)
    assert row.stage_s == pytest.approx(0.3 + 2.0, abs=0.1)


def test_a_wish_is_worth_a_wait_and_no_more():
    policy = Policy(prefer_wait_s=4.0)
    assert policy.row(Request("cds", site=US), pilot("eu"), ()).label_s == 4.0
    assert policy.row(Request("cds", site=Site("eu", "m9")), pilot("eu"), ()).label_s == 2.0
    assert policy.row(Request("cds", site=EU), pilot("eu"), ()).label_s == 0.0
    wish = Request("cds", site=US, inputs=("du",))
    assert order(wish, pilot("eu"), pilot("us", US), inputs=[at(EU)]) == ["us", "eu"]  # 2 s to move
    assert order(wish, pilot("eu"), pilot("us", US), inputs=[at(EU, 1000 * MB)]) == ["eu", "us"]  # 20 s to move


def test_the_rejected_come_last_by_name():
    rows = Policy().rank(
        Request("cds", site=US, require=True), [pilot("b"), pilot("a"), pilot("us", US, backlog_s=99.0)], {}
    )
    assert [row.pilot for row in rows] == ["us", "a", "b"]


def test_a_decision_prints_as_a_table():
    rows = (
        Row("pc-1", "best", "", 1.5, 0.25, 0.0, 0.5, (1_500_000, 0, 7), 1.5, False),
        Row("pc-longer", "possible", "", 0.0, 12.0, 5.0),
        Row("pc-3", "rejected", "3 slots are needed, it has 1"),
    )
    assert str(Decision("cu-1", None, "waits for a slot of pc-1", rows)).splitlines() == [
        "cu-1: waits for a slot of pc-1",
        "  pilot      verdict   queue s  stage s  label s  output s   cost s  bytes here/near/far",
        "  pc-1       best        1.500    0.250    0.000     0.500    2.250  1,500,000/0/7",
        "  pc-longer  possible    0.000   12.000    5.000     0.000   17.000  0/0/0",
        "  pc-3       rejected  3 slots are needed, it has 1",
    ]
    assert str(Decision("cu-1", None, "waits for a pilot: there is none")) == "cu-1: waits for a pilot: there is none"
