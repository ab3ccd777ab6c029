"""dpilot as a driver of a multi-site harness: its scheduler at home, one pilot and one store at each site.

The harness gives ``ctx`` (the sites with their S3 servers, the data units, the compute units) and ``wantask``, which is
what a unit computes; see its README. The data units are put into dpilot's stores before the clock starts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

import dask
import s3fs
import wantask  # beside the harness

from dpilot import ComputeDataService, PilotComputeService, PilotDataService, StagedData
from dpilot.pilots.launcher import Command, LaunchRequest, register_launcher
from dpilot.pilots.local import LocalLauncher

VARIANTS = ("data",)
NEEDS_CLUSTER = False

#: Site -> the command that runs another one there.
_AT: dict[str, list[str]] = {}


class SiteLauncher(LocalLauncher):
    """Starts a pilot's agent in the network namespace of a site: ``site://NAME``."""

    def __init__(self, url: SplitResult) -> None:
        self.url = url

    def render(self, request: LaunchRequest) -> Command:
        command = super().render(request)
        return Command((*_AT[self.url.netloc], *command.arguments), command.environment)


def work(unit: dict[str, Any], inputs: list[StagedData]) -> Any:
    """One compute unit of the harness."""
    return wantask.compute(unit, [Path(*data.files.values()).read_bytes() for data in inputs])


def setup(ctx: dict[str, Any]) -> Any:
    dask.config.set({"dpilot.scheduler.host": ctx["home"]["ip"], "dpilot.scheduler.dashboard-address": None})
    sys.modules.setdefault(SiteLauncher.__module__, sys.modules[__name__])
    register_launcher("site", SiteLauncher)
    compute, data, service = PilotComputeService(), PilotDataService(), ComputeDataService()
    service.add_pilot_compute_service(compute)
    service.add_pilot_data_service(data)
    units = {}
    for site in ctx["sites"]:
        name, s3 = site["name"], site["s3"]
        here = {"affinity_datacenter_label": name, "affinity_machine_label": name}
        options = {"key": s3["key"], "secret": s3["secret"], "endpoint_url": s3["endpoint_url"]}
        _AT[name] = site["exec"]
        if site["slots"]:
            directory = f"{ctx['tmp']}/{name}"
            pilot = {
                "service_url": f"site://{name}",
                "number_of_processes": site["slots"],
                "working_directory": directory,
            }
            compute.create_pilot(pilot | here)
        store = data.create_pilot({"service_url": f"s3://{s3['scratch']}/dpilot", "storage_options": options, **here})
        source = Path(ctx["tmp"]) / "source"
        source.mkdir(exist_ok=True)
        for unit in ctx["units"]:
            if unit["site"] == name:
                s3fs.S3FileSystem(**options).get_file(unit["path"], str(source / unit["id"]))
                units[unit["id"]] = store.submit_data_unit({"file_urls": [str(source / unit["id"])]})
    for unit in units.values():
        assert unit.wait(120) == "Running", unit.exception()
    compute.wait_running(60)
    return compute, data, service, units


def run(ctx: dict[str, Any], state: Any) -> list[Any]:
    _, _, service, units = state
    submitted = service.submit_compute_unit_batch(
        {"executable": work, "args": (unit, [units[du] for du in unit["inputs"]]), "name": "cu"} for unit in ctx["cus"]
    )
    return [unit.result() for unit in submitted]


def teardown(ctx: dict[str, Any], state: Any) -> None:
    compute, data, service, _ = state
    service.cancel()
    data.cancel()
    compute.cancel()
