"""Matchers with pilots at three sites, and what tests do to them; no cluster, no clock."""

from dpilot.placement import InputView, Links, Matcher, Policy, Request, Site

EU, US, LAB = Site("eu", "e"), Site("us", "u"), Site("lab", "l")
MB = 10**6


def matcher(prefer_wait_s=5.0, unknown_s=1.0, **sites):
    """A matcher with a pilot of two one-slot workers at each site."""
    made = Matcher(Policy(Links(), prefer_wait_s), unknown_runtime_s=unknown_s)
    for name, site in sites.items():
        made.add_pilot(name, site, 2)
        for number in range(2):
            made.add_worker(name, f"{name}-{number}", 1)
    return made


def brings_ahead(**sites):
    """A matcher that has data brought ahead, with a pilot of one slot at each site."""
    made = Matcher(Policy(Links()), ahead=True)
    for name, site in sites.items():
        made.add_pilot(name, site, 1)
        made.add_worker(name, f"{name}-0", 1)
    return made


def bound(m, now=0.0):
    return {binding.unit: binding.pilot for binding in m.match(now).bindings}


def submit(m, *units, now=0.0, priority=0.0, order=None, **request):
    for number, unit in enumerate(units):
        m.submit(
            unit,
            Request("cds", **request),
            now=now,
            priority=priority,
            order=len(m) + number if order is None else order,
        )


def check_that_lines_stand_in_their_queues(m):
    """Who does not is never looked at: it would wait beside idle slots."""
    for line in m._lines.values():
        for queue in line.queues:
            stands = any(waiting is line.head() for waiting in (*queue._heads, *queue._shared))
            assert stands is not queue.is_coming, f"{line.head().unit} is not to be found"


def reads(m, du, *sites, nbytes=100 * MB):
    m.inputs[du] = InputView(du, nbytes, 1, sites)
    return {"inputs": (du,)}
