"""dpilot: Dask that knows where your files are.

Name your data and your computers with the same labels, say what each piece of work reads, and dpilot runs the work
where the data lies. It speaks the Pilot API and runs on ``dask.distributed`` and ``fsspec``.
"""

from dpilot import monitor  # noqa: F401 - has the schedulers of this process watched
from dpilot._version import version
from dpilot.descriptions import (
    ComputeUnitDescription,
    DataUnitDescription,
    PilotComputeDescription,
    PilotDataDescription,
)
from dpilot.errors import (
    ChecksumError,
    ConnectionLostError,
    DataError,
    DescriptionError,
    ExecutableError,
    InputError,
    ManifestError,
    PilotError,
    PilotLaunchError,
    PilotTimeoutError,
    PlacementError,
    StagingError,
    StateError,
    StoreError,
    StoreFullError,
    UnitCanceledError,
    UnitError,
    UnknownObjectError,
)
from dpilot.placement import Decision
from dpilot.runtime.attempt import gpus, sandbox
from dpilot.runtime.staging import StagedData
from dpilot.service import (
    Callback,
    ComputeDataService,
    ComputeDataServiceCentral,
    ComputeDataServiceDecentral,
    ComputeUnit,
    ComputeUnitService,
    DataUnit,
    DataUnitService,
    PilotCompute,
    PilotComputeService,
    PilotData,
    PilotDataService,
    progress,
)
from dpilot.states import State

__version__ = version
#: As in BigJob.
application_id = "dpilot"

__all__ = [
    "Callback",
    "ChecksumError",
    "ComputeDataService",
    "ComputeDataServiceCentral",
    "ComputeDataServiceDecentral",
    "ComputeUnit",
    "ComputeUnitDescription",
    "ComputeUnitService",
    "ConnectionLostError",
    "DataError",
    "DataUnit",
    "DataUnitDescription",
    "DataUnitService",
    "Decision",
    "DescriptionError",
    "ExecutableError",
    "InputError",
    "ManifestError",
    "PilotCompute",
    "PilotComputeDescription",
    "PilotComputeService",
    "PilotData",
    "PilotDataDescription",
    "PilotDataService",
    "PilotError",
    "PilotLaunchError",
    "PilotTimeoutError",
    "PlacementError",
    "StagedData",
    "StagingError",
    "State",
    "StateError",
    "StoreError",
    "StoreFullError",
    "UnitCanceledError",
    "UnitError",
    "UnknownObjectError",
    "application_id",
    "gpus",
    "progress",
    "sandbox",
    "version",
]
