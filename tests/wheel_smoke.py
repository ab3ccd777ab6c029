"""Does an installed dpilot work? Needs nothing but dpilot and its core dependencies.

``.ci/run`` runs this with the Python of a fresh environment into which only the wheel was installed, from a
directory outside the checkout::

    python tests/wheel_smoke.py
"""

import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata, resources
from pathlib import Path

#: The names that dpilot promises.
PUBLIC = (
    "Callback",
    "ComputeDataService",
    "ComputeDataServiceCentral",
    "ComputeDataServiceDecentral",
    "ComputeUnit",
    "ComputeUnitDescription",
    "ComputeUnitService",
    "DataUnit",
    "DataUnitDescription",
    "DataUnitService",
    "PilotCompute",
    "PilotComputeDescription",
    "PilotComputeService",
    "PilotData",
    "PilotDataDescription",
    "PilotDataService",
    "PilotError",
    "State",
    "application_id",
    "version",
)


def check(what: str, good: bool, found: object = "") -> None:
    """Print what was checked; leave with status 1 where it does not hold."""
    print(f"{'ok  ' if good else 'FAIL'}  {what}{f': {found}' if found != '' else ''}", flush=True)
    if not good:
        sys.exit(1)


def the_package() -> None:
    """It is the installed one, complete, with every public name and its command."""
    import dpilot

    place = Path(dpilot.__file__).parent
    check("imported from this environment, not from a checkout", place.is_relative_to(sys.prefix), place)
    missing = [name for name in PUBLIC if not hasattr(dpilot, name)]
    check("every public name is there", not missing, ", ".join(missing))
    for name in ("py.typed", "dpilot.yaml"):
        check(f"{name} is installed", resources.files("dpilot").joinpath(name).is_file())
    installed = metadata.version("dpilot")
    check("dpilot.version is the installed version", dpilot.version == installed, installed)
    for command in ([str(Path(sys.executable).with_name("dpilot"))], [sys.executable, "-m", "dpilot"]):
        said = subprocess.run([*command, "--version"], check=True, capture_output=True, text=True).stdout
        check(f"{' '.join(command[1:]) or 'dpilot'} --version", installed in said, said.strip())


def the_seed_example() -> None:
    """The example that dpilot was founded on, verbatim but for its import line."""
    # fmt: off
    from dpilot import PilotComputeService, ComputeDataService, State  # noqa: F401, I001

    pilot_compute_service = PilotComputeService()

    # create pilot job service and initiate a pilot job
    pilot_compute_description = {
        "service_url": 'fork://localhost',
        "number_of_processes": 1,
        "working_directory": os.path.join(os.getcwd(),"work"),  # noqa: PTH109, PTH118
        'affinity_datacenter_label': "eu-de-south",
        'affinity_machine_label': "mymachine"
    }

    pilotjob = pilot_compute_service.create_pilot(pilot_compute_description=pilot_compute_description)

    compute_data_service = ComputeDataService()
    compute_data_service.add_pilot_compute_service(pilot_compute_service)

    # start work unit
    compute_unit_description = {
        "executable": "/bin/date",
        "arguments": [""],
        "number_of_processes": 1,
        "output": "stdout.txt",
        "error": "stderr.txt",
        "affinity_datacenter_label": "eu-de-south",
        "affinity_machine_label": "mymachine"
    }

    compute_unit = compute_data_service.submit_compute_unit(compute_unit_description)
    compute_data_service.wait()
    # fmt: on
    state = compute_unit.get_state()
    check("the seed's example ends Done", state == "Done", state)
    written = Path(compute_unit.get_local_working_directory(), "stdout.txt").read_text()
    check("with the date in its stdout.txt", str(time.localtime().tm_year) in written, written.strip())
    check("on the pilot that was asked for", compute_unit.get_details()["pilot"] == pilotjob.get_id())
    compute_data_service.cancel()


def main() -> None:
    """Run all checks in a directory of their own."""
    os.environ["DASK_DPILOT__SCHEDULER__DASHBOARD_ADDRESS"] = "None"
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        the_package()
        the_seed_example()
        os.chdir("/")


if __name__ == "__main__":
    main()
