"""The benchmark of the monitor's cost runs, and tells what it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.cluster
def test_it_tells_the_monitors_share_and_what_each_figure_takes():
    sizes = ["--units", "50", "--records", "200", "--pilots", "60"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.monitor", *sizes, "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["shares"]) == 2
    assert all(0 < row["monitor_s"] < row["scheduler_s"] for row in told["shares"])
    assert {row["what"] for row in told["costs"]} >= {"/dpilot/api/pilots.json", "/dpilot/api/units.json"}
    assert all(row["us"] > 0 for row in told["costs"])
