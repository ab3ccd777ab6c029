"""Pilots on this machine: ``fork://localhost`` and ``local://``."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult

import dask

from dpilot.errors import DescriptionError, PilotLaunchError
from dpilot.pilots.launcher import Command, Launcher, LaunchRequest, agent_arguments
from dpilot.pilots.process import AgentProcess

__all__ = ["LocalLauncher"]

_AGENT = str(Path(__file__).with_name("agent.py"))


class LocalLauncher(Launcher):
    """Runs a pilot's workers as processes of this machine, owned by this process.

    They see the modules, the environment and the Dask configuration of this process, as it would be
    with Dask's ``LocalCluster``. The log of agent and workers is ``<working_directory>/<pilot id>.log``.
    """

    def __init__(self, url: SplitResult) -> None:
        super().__init__(url)
        here = socket.gethostname().lower()
        names = {"", "localhost", "127.0.0.1", "::1", here, here.partition(".")[0]}
        text = url.geturl()
        if (url.hostname or "") not in names:
            raise DescriptionError(
                f"service_url {text!r} names the host {url.hostname!r}, but {url.scheme}:// starts pilots on this "
                f"machine ({here}) only; write {url.scheme}://localhost",
                field="service_url",
                value=text,
            )
        if url.netloc.lower() not in names | {"[::1]"} or url.path.strip("/") or url.query or url.fragment:
            raise DescriptionError(
                f"service_url {text!r} has more than a host, which {url.scheme}:// has no use for; "
                f"write {url.scheme}://localhost",
                field="service_url",
                value=text,
            )

    def render(self, request: LaunchRequest) -> Command:
        """The command that runs the pilot's agent with this interpreter and its search path for modules."""
        # By its path, with the paths as arguments: so the agent needs no PYTHONPATH, which the executables of units
        # would inherit. -P keeps the directory of the agent's file out of the way.
        path = [f"--path={Path(entry).absolute()}" for entry in sys.path]
        return Command((sys.executable, "-P", _AGENT, *agent_arguments(request), *path), dict(request.environment))

    def submit(self, request: LaunchRequest) -> AgentProcess:
        """Start the pilot's agent.

        Raises
        ------
        PilotLaunchError
            If the working directory cannot be made or written to, or the agent cannot be started.
        """
        if request.options:
            raise DescriptionError(
                f"launcher_options {dict(request.options)!r}: {self.url.scheme}:// has none; leave them out",
                field="launcher_options",
                value=dict(request.options),
            )
        directory = Path(request.working_directory).absolute()
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(request, directory, error) from error
        if not os.access(directory, os.W_OK | os.X_OK):
            raise _unusable(request, directory, PermissionError("not writable"))
        command = self.render(dataclasses.replace(request, working_directory=str(directory)))
        return AgentProcess(
            request.pilot,
            command,
            environment={**_dask_environment(), **os.environ, **_dask_config(), **command.environment},
            log=directory / f"{request.pilot}.log",
            grace_s=request.grace_s,
        )


def _unusable(request: LaunchRequest, directory: Path, error: OSError) -> PilotLaunchError:
    return PilotLaunchError(
        f"working_directory {str(directory)!r} of pilot {request.pilot} cannot be used: {error.strerror or error}; "
        f"name a directory that you may write to"
    )


def _dask_environment() -> dict[str, str]:
    """What Dask's nanny would set for a worker unless it is set: threads of numerical libraries, the allocator."""
    variables = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    return {name: str(value) for name, value in variables.items() if value is not None}


def _dask_config() -> dict[str, str]:
    """The Dask configuration of this process (paths of certificates, say), as Dask hands it to its own workers."""
    config = {key: value for key, value in dask.config.config.items() if _is_json(value)}
    return {"DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(config)}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
