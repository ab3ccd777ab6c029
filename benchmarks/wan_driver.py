"""dpilot as a driver of a multi-site harness: its scheduler at home, one pilot and one store at each site.

The harness gives ``ctx`` (the sites with their S3 servers, the data units, the compute units); see its README. The data
units are put into dpilot's stores before the clock starts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

import dask
import s3fs
from wan_unit import look, work  # beside this file

from dpilot import ComputeDataService, PilotComputeService, PilotDataService
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


def setup(ctx: dict[str, Any]) -> Any:
    dask.config.set({"dpilot.scheduler.host": ctx["home"]["ip"], "dpilot.scheduler.dashboard-address": None})
    sys.modules.setdefault(SiteLauncher.__module__, sys.modules[__name__])
    register_launcher("site", SiteLauncher)
    compute, data, service = PilotComputeService(), PilotDataService(), ComputeDataService()
    service.add_pilot_compute_service(compute)
    service.add_pilot_data_service(data)
    units, pilots, stores = {}, [], []
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
            pilots.append(compute.create_pilot(pilot | here))
        store = data.create_pilot({"service_url": f"s3://{s3['scratch']}/dpilot", "storage_options": options, **here})
        stores.append(store)
        source = Path(ctx["tmp"]) / "source"
        source.mkdir(exist_ok=True)
        for unit in ctx["units"]:
            if unit["site"] == name:
                s3fs.S3FileSystem(**options).get_file(unit["path"], str(source / unit["id"]))
                units[unit["id"]] = store.submit_data_unit({"file_urls": [str(source / unit["id"])]})
    for unit in units.values():
        assert unit.wait(120) == "Running", unit.exception()
    compute.wait_running(60)
    # Workers connect to stores when they join. That takes a while, and the same whoever schedules: see to it that it is
    # done, as the harness's own driver does, with a small file of each store for each worker.
    small = source / "small"
    small.write_text("small")
    looks = [
        pilot.submit_compute_unit(
            {
                "executable": look,
                "args": ([store.submit_data_unit({"file_urls": [str(small)]}) for store in stores],),
                "name": "look",
            }
        )
        for pilot in pilots
        for _ in range(pilot.slots)
    ]
    for unit in looks:
        unit.result()
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
