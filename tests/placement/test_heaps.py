"""What is remembered of units that are gone: nothing, however long a scheduler lives."""

import gc
import heapq

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
