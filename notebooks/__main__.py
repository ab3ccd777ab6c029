"""Run notebooks, each in a kernel of its own, and write them down with what they show.

``python -m notebooks`` runs all; ``python -m notebooks 03 06`` those whose names begin so; with ``--check`` nothing is
written, and what would change is told.
"""

from __future__ import annotations

import sys
import time

import nbformat

from notebooks.running import differences, execute, find, tidy

names = [argument for argument in sys.argv[1:] if argument != "--check"]
stale = False
for path in find(*names):
    began = time.perf_counter()
    committed = nbformat.read(path, as_version=4)
    fresh = tidy(execute(path))
    if "--check" in sys.argv:
        found = differences(committed, fresh)
        stale = stale or bool(found)
        print(*(f"{path.name}: {line}" for line in found), sep="\n", end="\n" if found else "")
    else:
        nbformat.write(fresh, path)
    print(f"{path.name}: {time.perf_counter() - began:.1f} s, {path.stat().st_size / 1e3:.0f} kB")
sys.exit(stale)
