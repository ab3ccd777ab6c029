"""What is remembered of units that are gone: nothing, however long a scheduler lives."""

import gc
import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpilot.placement import InputView, Matcher, Policy, Request, Site
from dpilot.placement.heaps import LazyHeap
from dpilot.placement.lines import Line

EU, US = Site("eu", "e"), Site("us", "u")


def test_a_heap_drops_what_is_out_of_date_when_it_has_doubled():
    valid = set(range(10))
    heap = LazyHeap(lambda entry: entry in valid)
    for entry in range(1000, 0, -1):
        heap.push(entry)
        assert len(heap) <= 33
    assert [heapq.heappop(heap) for _ in range(9)] == list(range(1, 10))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 200)), max_size=300))
def test_the_first_entry_is_the_least_of_those_that_are_true(steps):
    valid, lazy = set(), LazyHeap(lambda entry: entry in valid)
    for comes, number in steps:
        if comes and number not in valid:
            valid.add(number)
            lazy.push(number)
        else:
            valid.discard(number)
        assert lazy.first() == min(valid, default=None)


@pytest.mark.parametrize("order", [1, -1, 7])
def test_what_is_out_of_date_is_looked_at_few_times(order):
    """Whether it went in order, or all over the place and is found when most has gone."""
    n, looks = 4096, 0
    valid = set(range(n))

    def is_valid(entry):
        nonlocal looks
        looks += 1
        return entry in valid

    lazy = LazyHeap(is_valid)
    for entry in range(n):
        lazy.push(entry)
    looks = 0
    for step in range(n):
        valid.discard(order * step % n)
        first = lazy.first()
        if step % 64 == 0:
            assert first == min(valid, default=None)
    assert looks < 8 * n


def test_units_with_data_of_their_own_leave_nothing_behind():
    """Some of their data is elsewhere, too, so that both sites hear of them; one that came first waits all the time."""
    m = Matcher(Policy())
    for name, site in (("eu", EU), ("us", US)):
        m.add_pilot(name, site, 1)
        m.add_worker(name, f"{name}-0", 1)
    at_us = InputView("at-us", 10**9, 1, (US,))
    m.inputs.update({"at-us": at_us, "at-eu": InputView("at-eu", 10**9, 1, (EU,))})
    m.submit("blocks", Request("cds", inputs=("at-us",)), now=0.0, order=-2)
    m.submit("waits", Request("cds", inputs=("at-us",), slots=2), now=0.0, order=-1)
    m.submit("busy", Request("cds", inputs=("at-eu",)), now=0.0, order=-1)
    m.match(0.0)
    last = "busy"
    for number in range(1000):
        du, unit = f"du-{number}", f"cu-{number}"
        m.inputs[du] = InputView(du, 10**8, 1, (EU,))
        m.submit(unit, Request("cds", inputs=(du, "at-eu", "at-us")), now=0.0, order=number)
        m.match(0.0)
        m.release(last)
        bound = [binding.unit for binding in m.match(0.0).bindings]
        assert bound == [unit]
        del m.inputs[du]
        last = unit
    gc.collect()
    assert sum(isinstance(thing, Line) for thing in gc.get_objects()) < 200
