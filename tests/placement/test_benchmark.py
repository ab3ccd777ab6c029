"""The benchmarks of the placement run, and tell what they promise."""

from benchmarks import makespan
from benchmarks.placement import SHAPES, Case, measure


def test_every_shape_is_measured_beside_its_baselines():
    for shape in SHAPES:
        rows = measure(Case(shape, pilots=4, workers=8, units=60, data=40))
        assert [row["by"] for row in rows] == ["dpilot", "scan of all pilots", "round robin"]
        assert rows[0]["placed"] == rows[2]["placed"] == 60
        assert all(row["us"] >= 0 for row in rows)
        assert 0 < rows[0]["nbytes"] < 4000


def test_a_case_is_measured_beside_bound_plan_and_other_policies():
    found = makespan.measure(makespan.CASES["uniform"], [1], evaluations=8)
    assert 1.0 <= found["bound"] < 2.0
    assert found["mb"] == 0
    assert found["plan"] == found["worst"]
    assert found["other"] is not None
