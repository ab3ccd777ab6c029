"""Placement without a cluster: a clock, and pilots, links and units that exist on paper only.

A :class:`Scenario` says what there is; :func:`simulate` runs it under a policy (dpilot's own is the very code that the
scheduler runs), :func:`compare` sets policies beside each other and beside what no policy could beat, and
:func:`what_if` tells what one more pilot would bring. ``dpilot simulate`` is the same as a command.
"""

from dpilot.simulator import workloads
from dpilot.simulator.bound import Bound, lower_bound
from dpilot.simulator.own import Dpilot
from dpilot.simulator.placement import Binding, Copy, Orders, Placement
from dpilot.simulator.plan import Plan, make_plan
from dpilot.simulator.policies import Delay, FlatLabels, MostBytes, RandomPilot, RoundRobin
from dpilot.simulator.recording import Recording
from dpilot.simulator.result import WAITS, Result, Trace
from dpilot.simulator.scenario import Data, Link, Pilot, Scenario, Store, Unit, Uplink
from dpilot.simulator.simulation import POLICIES, Comparison, WhatIf, compare, simulate, what_if
from dpilot.simulator.workloads import WORKLOADS

__all__ = [
    "POLICIES",
    "WAITS",
    "WORKLOADS",
    "Binding",
    "Bound",
    "Comparison",
    "Copy",
    "Data",
    "Delay",
    "Dpilot",
    "FlatLabels",
    "Link",
    "MostBytes",
    "Orders",
    "Pilot",
    "Placement",
    "Plan",
    "RandomPilot",
    "Recording",
    "Result",
    "RoundRobin",
    "Scenario",
    "Store",
    "Trace",
    "Unit",
    "Uplink",
    "WhatIf",
    "compare",
    "lower_bound",
    "make_plan",
    "simulate",
    "what_if",
    "workloads",
]
