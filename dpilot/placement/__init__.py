"""Where a unit should run: pure decisions, without Dask, files, clocks or chance.

Snapshots in (:mod:`~dpilot.placement.views`), decisions out (:mod:`~dpilot.placement.policy`);
:class:`~dpilot.placement.matcher.Matcher` keeps the waiting units and the pilots' slots between them.
Time is passed in, so the same events give the same decisions, in a test, in a simulation of ten
thousand workers and in the scheduler.
"""

from dpilot.placement.ahead import Copying
from dpilot.placement.decision import Decision, Row
from dpilot.placement.estimates import RunTimes
from dpilot.placement.links import LinkRow, Links, StatedLink
from dpilot.placement.matcher import Binding, Matcher, Matching
from dpilot.placement.outputs import Outputs
from dpilot.placement.policy import Policy, feasible
from dpilot.placement.shares import Reservation, Share
from dpilot.placement.slots import PilotSlots
from dpilot.placement.stores import StoreView, choose_stores, nearest_store
from dpilot.placement.topology import Distance, Site
from dpilot.placement.views import InputView, PilotView, Request

__all__ = [
    "Binding",
    "Copying",
    "Decision",
    "Distance",
    "InputView",
    "LinkRow",
    "Links",
    "Matcher",
    "Matching",
    "Outputs",
    "PilotSlots",
    "PilotView",
    "Policy",
    "Request",
    "Reservation",
    "Row",
    "RunTimes",
    "Share",
    "Site",
    "StatedLink",
    "StoreView",
    "choose_stores",
    "feasible",
    "nearest_store",
]
