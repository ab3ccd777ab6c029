"""Run the benchmarks that the page on performance shows, and keep what they wrote in ``docs/measured/``.

``python docs/measure.py units data`` runs these two; without names, all. Nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]

COMMANDS = {
    "units": "python -m benchmarks --json",
    "data": (
        "python -m benchmarks.data --large 512 --files 500 --units 16 --unit 128 --catalogue 10000 --repeat 5 --json"
    ),
    "placement": (
        "python -m benchmarks.placement --pilots 10 --pilots 100 --workers 1000 --units 20000 --data 20000 --json"
    ),
    "monitor": "python -m benchmarks.monitor --json",
    "policies": "python docs/measure_policies.py",
}


def machine() -> str:
    """What kind of machine this is."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{os.cpu_count()} virtual CPUs ({platform.machine()}), {memory:.0f} GiB, Linux; "
        f"Python {platform.python_version()}, distributed {version('distributed')}"
    )


def measure(name: str) -> None:
    """Run one benchmark, and write ``docs/measured/<name>.json``."""
    command = COMMANDS[name]
    done = subprocess.run(
        [sys.executable, *command.split()[1:]], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    kept = {
        "command": command.removesuffix(" --json"),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.strip(),
        "machine": machine(),
        "rows": json.loads(done.stdout),
    }
    (ROOT / "docs" / "measured").mkdir(exist_ok=True)
    (ROOT / "docs" / "measured" / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or COMMANDS:
        measure(chosen)
