"""Every policy on every workload of the simulator: how long it takes over what no policy could beat, as JSON."""

from __future__ import annotations

import json
import sys

from dpilot.simulator import POLICIES, compare
from dpilot.simulator.workloads import WORKLOADS

rows = []
for name, make in WORKLOADS.items():
    compared = compare(make(), tuple(POLICIES), evaluations=0)
    rows += [
        {
            "workload": name,
            "policy": result.policy,
            "makespan_s": result.makespan_s,
            "bound_s": compared.bound.makespan_s,
            "far_nbytes": result.far_nbytes,
        }
        for result in compared.results
    ]
json.dump(rows, sys.stdout)
