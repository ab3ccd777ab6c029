"""The benchmark runs, and tells what it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.cluster
def test_it_tells_rates_beside_their_baselines():
    sizes = ["--functions", "20", "--singles", "10", "--programs", "4", "--repeat", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *sizes, "--json"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["system"], row["n"]) for row in rows] == [
        ("dpilot", 1),
        ("LocalCluster", 1),
        ("dpilot", 20),
        ("Client.map", 20),
        ("Client.map(workers=...)", 20),
        ("dpilot", 10),
        ("Client.submit", 10),
        ("dpilot", 4),
        ("Client.map(workers=...)", 4),
        ("ProcessPoolExecutor", 4),
    ]
    assert all(row.get("per_second", row.get("seconds")) > 0 for row in rows)
