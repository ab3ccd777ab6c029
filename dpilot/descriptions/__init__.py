"""What users ask for: descriptions as dicts with attribute access, checked into frozen specs.

A description (``PilotComputeDescription`` and the other three) is what users write. Its ``validate()`` gives a spec
(:class:`PilotSpec`, :class:`ComputeUnitSpec`, :class:`StoreSpec`, :class:`DataUnitSpec`), which is what the rest of
dpilot uses: typed, normalised, with units in its names, and never changed again.
"""

from dpilot.descriptions.compute import (
    ComputeUnitDescription,
    ComputeUnitSpec,
    PilotComputeDescription,
    PilotSpec,
)
from dpilot.descriptions.coordination import check_coordination_url
from dpilot.descriptions.data import DataUnitDescription, DataUnitSpec, PilotDataDescription, StoreSpec
from dpilot.descriptions.expansion import expand
from dpilot.descriptions.parsers import FileTransfer, Output, did_you_mean, redacted
from dpilot.descriptions.table import Description

__all__ = [
    "ComputeUnitDescription",
    "ComputeUnitSpec",
    "DataUnitDescription",
    "DataUnitSpec",
    "Description",
    "FileTransfer",
    "Output",
    "PilotComputeDescription",
    "PilotDataDescription",
    "PilotSpec",
    "StoreSpec",
    "check_coordination_url",
    "did_you_mean",
    "expand",
    "redacted",
]
