"""The benchmark of the matcher runs, and tells what it promises."""

from benchmarks.placement import SHAPES, Case, measure


def test_every_shape_is_measured_beside_its_baselines():
    for shape in SHAPES:
        rows = measure(Case(shape, pilots=4, workers=8, units=60, data=40))
        assert [row["by"] for row in rows] == ["dpilot", "scan of all pilots", "round robin"]
        assert rows[0]["placed"] == rows[2]["placed"] == 60
        assert all(row["us"] >= 0 for row in rows)
        assert 0 < rows[0]["nbytes"] < 4000
