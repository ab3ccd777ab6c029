"""The Pilot API: the handles that users hold."""

from dpilot.service.compute_data import (
    ComputeDataService,
    ComputeDataServiceCentral,
    ComputeDataServiceDecentral,
    ComputeUnitService,
    DataUnitService,
)
from dpilot.service.compute_unit import ComputeUnit
from dpilot.service.data_unit import DataUnit
from dpilot.service.handle import Callback
from dpilot.service.pilot_compute import PilotCompute, PilotComputeService
from dpilot.service.pilot_data import PilotData, PilotDataService
from dpilot.service.progress import progress

__all__ = [
    "Callback",
    "ComputeDataService",
    "ComputeDataServiceCentral",
    "ComputeDataServiceDecentral",
    "ComputeUnit",
    "ComputeUnitService",
    "DataUnit",
    "DataUnitService",
    "PilotCompute",
    "PilotComputeService",
    "PilotData",
    "PilotDataService",
    "progress",
]
