import pytest

from dpilot.placement import PilotSlots


def pool(*slots, in_flight_s=0.05):
    pilot = PilotSlots(in_flight_s)
    for number, count in enumerate(slots):
        pilot.add_worker(f"w{number}", count)
    return pilot


def test_long_units_take_idle_slots_only():
    pilot = pool(1, 1)
    assert pilot.free(1.0) == 2
    workers = {pilot.acquire(unit, 1, 1.0).worker for unit in "ab"}
    assert workers == {"w0", "w1"}
    assert (pilot.free(1.0), pilot.idle) == (0, 0)
    assert pilot.acquire("c", 1, 1.0) is None
    assert pilot.release("a")
    assert not pilot.release("a")
    assert pilot.free(1.0) == 1


def test_tiny_units_are_queued_up_to_so_much_work():
    pilot = pool(1, in_flight_s=0.05)
    assert pilot.free(0.001) == 50
    for number in range(50):
        assert pilot.acquire(str(number), 1, 0.001)
    assert pilot.acquire("more", 1, 0.001) is None
    assert pilot.free(1.0) == 0
    assert pilot.idle == 0
    for number in range(50):
        pilot.release(str(number))
    assert (pilot.idle, pilot.backlog_s) == (1, pytest.approx(0.0))


def test_tiny_units_are_spread_over_workers():
    pilot = pool(1, 1)
    for number in range(10):
        pilot.acquire(str(number), 1, 0.001)
    assert [worker.busy for worker in pilot.workers.values()] == [5, 5]


def test_the_least_loaded_worker_is_taken_then_the_first_to_join():
    pilot = pool(1, 2, 1)
    assert [pilot.acquire(unit, 1, 0.02).worker for unit in "abcd"] == ["w0", "w1", "w2", "w1"]
    pilot.release("c")
    assert pilot.acquire("e", 1, 0.02).worker == "w2"
    assert pilot.acquire("f", 1, 0.02).worker == "w0"  # all slots are busy: it is queued


def test_a_worker_with_more_slots_queues_what_a_less_loaded_one_has_no_room_for():
    pilot = pool(1, 4)
    assert [pilot.acquire(unit, 1, 0.03).worker for unit in "abcde"] == ["w0", "w1", "w1", "w1", "w1"]
    assert [pilot.acquire(unit, 1, 0.03).worker for unit in "fg"] == ["w1", "w1"]  # 20 ms are left at w0, 80 at w1
    assert not pilot.has_room(0.03)
    assert pilot.acquire("h", 1, 0.03) is None
    assert pilot.has_room(0.02)


def test_a_worker_that_is_gone_is_not_taken():
    pilot = pool(1, 1)
    pilot.remove_worker("w0")
    assert pilot.remove_worker("w0") == []
    assert pilot.acquire("a", 1, 1.0).worker == "w1"
    assert not pilot.has_room(0.0)


def test_long_units_are_not_queued_however_many_slots_there_are():
    pilot = pool(8)
    for number in range(8):
        assert pilot.acquire(str(number), 1, 0.001)
    assert (pilot.free(0.06), pilot.has_room(0.06), pilot.acquire("long", 1, 0.06)) == (0, False, None)


def test_what_is_remembered_of_loads_does_not_grow():
    pilot = pool(1, 1, 1)
    for number in range(1000):
        pilot.acquire(str(number), 1, 0.001)
        pilot.release(str(number))
    assert sum(map(len, pilot._by_load.values())) < 20


def test_several_slots_on_as_few_workers_as_will_do():
    pilot = pool(1, 4, 2)
    assert pilot.acquire("wide", 5, 1.0).slots == (("w1", 4), ("w2", 1))
    assert pilot.idle == 2
    assert pilot.acquire("wider", 3, 1.0) is None
    assert pilot.idle == 2


def test_nothing_is_queued_behind_a_wide_unit():
    pilot = pool(2)
    pilot.acquire("wide", 2, 0.001)
    assert pilot.free(0.001) == 0
    pilot.release("wide")
    assert pilot.free(0.001) > 2


def test_a_lost_worker_frees_what_it_ran_and_shrinks_what_it_helped():
    pilot = pool(2, 2)
    wide = pilot.acquire("wide", 3, 1.0)
    lead, helper = (address for address, _ in wide.slots)
    assert pilot.remove_worker(helper) == []
    assert pilot.reservations["wide"].slots == ((lead, 2),)
    assert pilot.remove_worker(lead) == ["wide"]
    assert (pilot.total, pilot.idle, pilot.reservations) == (0, 0, {})
    assert pilot.backlog_s == pytest.approx(0.0)


def test_a_closed_worker_takes_nothing_and_keeps_what_it_has():
    pilot = pool(1, 1)
    pilot.acquire("a", 1, 1.0)
    pilot.open_worker("w0", False)
    pilot.open_worker("w1", False)
    assert (pilot.free(1.0), pilot.free(0.001), pilot.idle) == (0, 0, 0)
    assert pilot.acquire("b", 1, 0.001) is None
    pilot.release("a")
    assert pilot.idle == 0
    pilot.open_worker("w0", True)
    assert pilot.idle == 1


def test_a_renamed_reservation_stays_taken():
    pilot = pool(1)
    pilot.acquire("a", 1, 1.0)
    pilot.rename("a", "a#1")
    assert not pilot.release("a")
    assert pilot.idle == 0
    assert pilot.release("a#1")
    assert pilot.idle == 1


def test_the_next_unit_is_sent_while_one_is_about_to_end() -> None:
    slots = PilotSlots()
    slots.add_worker("w", 1)
    assert slots.acquire("a", 1, 1.0) is not None
    assert not slots.has_room(1.0)
    assert slots.leave("a")
    assert not slots.leave("a")  # once
    assert slots.acquire("b", 1, 1.0) is not None
    assert not slots.has_room(1.0)
    assert slots.release("a")
    assert not slots.has_room(1.0)
    assert slots.release("b")
    assert (slots.idle, slots.workers["w"].busy, slots.workers["w"].leaving) == (1, 0, 0)


def test_units_sent_after_others_begin_in_order_and_the_last_one_can_be_taken_back() -> None:
    slots = PilotSlots()
    slots.add_worker("w", 2)
    for unit in ("a", "b"):
        slots.acquire(unit, 1, 1.0)
        assert slots.leave(unit)
    worker = slots.workers["w"]
    assert (slots.idle, worker.vacant, [*worker.following]) == (2, 0, [])
    for unit in ("c", "d"):
        reservation = slots.acquire(unit, 1, 1.0)
        assert reservation is not None
        assert reservation.follows
        assert not slots.leave(unit), "it has not begun"
    assert ([*worker.following], worker.vacant) == (["c", "d"], 0)
    slots.release("b")
    assert [*worker.following] == ["d"]
    assert slots.leave("c")
    assert slots.stay("a", 8.0) == "d"
    assert not slots.has_room(1.0)
    slots.release("d")
    assert (slots.idle, worker.vacant) == (1, 0), "only the one that c leaves"
    slots.release("c")
    slots.release("a")
    assert (slots.idle, worker.vacant, slots.backlog_s) == (2, 2, 0.0)


def test_what_needs_slots_that_are_free_indeed_waits_for_those_that_leave() -> None:
    slots = PilotSlots()
    slots.add_worker("w", 2, memory_nbytes=10, gpus=1)
    slots.acquire("a", 1, 1.0)
    slots.acquire("device", 1, 1.0, gpus=1)
    assert not slots.leave("device")
    slots.release("device")
    assert slots.leave("a")
    assert not slots.fits(2, 1.0)
    assert slots.acquire("wide", 2, 1.0) is None
    slots.rename("a", "a#1")
    assert slots.release("a#1")
    assert slots.acquire("wide", 2, 1.0) is not None
    assert not slots.leave("wide")


def test_a_worker_goes_while_a_unit_leaves() -> None:
    slots = PilotSlots()
    slots.add_worker("v", 1)
    slots.acquire("a", 1, 1.0)
    slots.leave("a")
    assert slots.remove_worker("v") == ["a"]
    assert (slots.total, slots.idle) == (0, 0)
    slots.add_worker("w", 1)
    assert slots.acquire("b", 1, 1.0) is not None


def test_nothing_is_queued_behind_what_takes_longer_than_was_thought() -> None:
    slots = PilotSlots(in_flight_s=0.05)
    slots.add_worker("w", 2)
    slots.acquire("a", 1, 0.001)
    slots.acquire("b", 1, 0.001)
    assert slots.free(0.001) == 98
    slots.hold_up("w")
    assert not slots.has_room(0.001)
    assert slots.backlog_s == pytest.approx(0.1)
    slots.hold_up("w")  # it is known
    assert slots.backlog_s == pytest.approx(0.1)
    slots.release("a")
    assert slots.free(0.001) == 50  # behind the other one, or beside it
    slots.release("b")
    assert (slots.idle, slots.backlog_s) == (2, pytest.approx(0.0))


def test_what_leaves_and_what_is_wide_is_held_up_by_nobody() -> None:
    slots = PilotSlots()
    slots.add_worker("w", 4)
    slots.acquire("wide", 2, 0.001)
    slots.acquire("a", 1, 0.001)
    assert slots.leave("a")
    before = slots.reservations.copy()
    slots.hold_up("w")
    assert slots.reservations == before
    for unit in ("wide", "a"):
        slots.release(unit)
    assert (slots.idle, slots.backlog_s) == (4, pytest.approx(0.0))


def test_what_is_about_to_end_is_work_of_its_pilot_still() -> None:
    slots = pool(1)
    slots.acquire("a", 1, 1.0)
    assert slots.leave("a")
    assert (slots.idle, slots.backlog_s, slots.workers["w0"].backlog_s) == (1, 1.0, 0.0)
    slots.acquire("b", 1, 1.0)
    assert slots.backlog_s == 2.0
    slots.expect("a", 3.0)
    assert (slots.backlog_s, slots.workers["w0"].backlog_s) == (4.0, 1.0)
    assert slots.stay("a", 5.0) == "b"
    assert slots.backlog_s == 6.0
    slots.release("b")
    slots.release("a")
    assert slots.backlog_s == 0.0


def test_what_is_given_back_leaves_nothing_behind() -> None:
    """In floating point, 0.1 + 0.2 - 0.1 - 0.2 is a little more than nothing: work that nobody does."""
    slots = PilotSlots()
    slots.add_worker("w", 8)
    for unit, expected_s in (("a", 0.1), ("b", 0.2)):
        assert slots.acquire(unit, 1, expected_s) is not None
    for unit in "ab":
        held = slots.release(unit)
        assert held is not None
        assert held.worker == "w"
    assert slots.release("a") is None
    assert (slots.backlog_s, slots.workers["w"].backlog_s) == (0.0, 0.0)
