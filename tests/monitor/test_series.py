"""Levels over time and histograms: exact, in bounded room."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpilot.monitor.series import DURATIONS_S, Histogram, Level

CHANGES = st.lists(st.tuples(st.floats(0, 50), st.integers(0, 9)), max_size=60)


@given(CHANGES, st.floats(0.01, 50))
def test_a_level_keeps_the_area_under_it_however_long_it_goes_on(changes, last):
    level, now, area, value = Level(1000.0, step_s=0.5, size=16), 1000.0, 0.0, 0
    for after, to in changes:
        area += value * after
        now, value = now + after, to
        level.set(to, now)
    area += value * last
    now += last
    times, means = level.points(now)
    assert len(times) == len(means) <= 16
    assert times == sorted(times)
    assert all(1000 <= t <= now for t in times)
    edges = [1000.0]
    for t in times:  # each point is the middle of its step
        edges.append(2 * t - edges[-1])
    steps = [b - a for a, b in pairwise(edges)]
    assert edges[-1] == pytest.approx(now, rel=1e-9)
    assert sum(m * s for m, s in zip(means, steps, strict=True)) == pytest.approx(area, abs=1e-4, rel=1e-4)


def test_a_level_is_told_relative_changes_too():
    level = Level(0.0, step_s=1.0, size=4)
    level.add(2, 1.0)
    level.add(1, 2.0)
    assert level.value == 3
    assert level.points(3.0) == ([0.5, 1.5, 2.5], [0.0, 2.0, 3.0])


def test_a_histogram_counts_up_to_each_bound():
    histogram = Histogram()
    for seconds in (0.001, 0.01, 0.02, 5000.0):
        histogram.add(seconds)
    assert (histogram.n, histogram.total) == (4, pytest.approx(5000.031))
    buckets = dict(histogram.buckets())
    assert (buckets["0.01"], buckets["0.03"], buckets[str(DURATIONS_S[-1])], buckets["+Inf"]) == (2, 3, 3, 4)
