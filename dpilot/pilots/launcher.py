"""What a launcher is, and how one is found by the scheme of a pilot's ``service_url``.

A launcher knows one way to get processes on one kind of machine: a local fork, later ssh and the batch
systems. It renders a :class:`LaunchRequest` into a :class:`Command` (pure), and submits that. What it
returns is a :class:`RunningPilot`, through which the pilot is watched and ended.

Other packages add launchers with an entry point in the group ``dpilot.launchers``: its name is the URL
scheme, its value the :class:`Launcher` class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

from dpilot.errors import DescriptionError, PilotLaunchError

__all__ = [
    "GROUP",
    "Command",
    "LaunchRequest",
    "Launcher",
    "OnExit",
    "RunningPilot",
    "agent_arguments",
    "launcher_for",
    "launcher_schemes",
    "register_launcher",
]

#: The entry point group in which launchers are found.
GROUP = "dpilot.launchers"

_BUILT_IN = {"fork": "dpilot.pilots.local:LocalLauncher", "local": "dpilot.pilots.local:LocalLauncher"}
_LATER = frozenset({"ssh", "slurm", "pbs", "sge", "condor", "lsf", "oar"})
_GONE = frozenset({"gram", "gsissh", "xt5torque", "ec2", "euca", "nova", "gce"})

#: Called once with the exit status and the last lines of the log when a pilot's process has ended.
OnExit = Callable[[int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRequest:
    """What a launcher needs to know to start a pilot.

    Parameters
    ----------
    pilot : str
        The pilot's id.
    scheduler : str
        Contact address of the Dask scheduler, such as ``tcp://10.0.0.1:8786``.
    slots : int
        How many slots (threads of workers) in all.
    working_directory : str
        Where the workers run; created if it is not there.
    threads_per_worker : int
        The last worker has fewer where `slots` is no multiple.
    memory_nbytes : int, optional
        Memory of each worker, in bytes; by default the machine's, shared out by threads.
    gpus_per_worker : int
        GPUs of each worker: the first has the node's first ones, and so on.
    environment : mapping of str to str
        Variables for the workers and all that they start.
    options : mapping of str to object
        What only the launcher understands; it refuses what it does not.
    tags : tuple of str
        Dask resources of every worker, as much of each as the worker has threads.
    preload : tuple of str
        Modules to import before the workers are forked.
    start_timeout_s : float
        How long a worker may take to join the scheduler, in seconds.
    grace_s : float
        How long workers have to close in good order at the end before they are killed, in seconds.
    """

    pilot: str
    scheduler: str
    slots: int
    working_directory: str
    threads_per_worker: int = 1
    memory_nbytes: int | None = None
    gpus_per_worker: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, object] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    start_timeout_s: float = 60.0
    grace_s: float = 5.0

    @property
    def workers(self) -> int:
        """How many workers the slots make."""
        return -(-self.slots // self.threads_per_worker)

    @property
    def last_threads(self) -> int:
        """The threads of the last worker: the slots that the others leave."""
        return self.slots - (self.workers - 1) * self.threads_per_worker


@dataclass(frozen=True, slots=True)
class Command:
    """A command line and the variables that it needs beside those that are there."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


class RunningPilot(Protocol):
    """A pilot that was submitted: the means to watch it and to end it."""

    @property
    def pid(self) -> int | None:
        """Process id of the agent (or of the command that holds it); None if there is none on this machine."""

    def poll(self) -> int | None:
        """The exit status; None while it runs."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end, at most `timeout` seconds; the exit status, or None if it still runs."""

    def cancel(self) -> None:
        """End the pilot and all that it started, within its grace period. Returns at once; again is no error."""

    def on_exit(self, callback: OnExit) -> None:
        """Have `callback` called with the exit status and the log's last lines when the pilot has ended.

        It is called in another thread; in this one, at once, if the pilot has ended already.
        """


class Launcher(ABC):
    """Starts pilots on one kind of machine.

    Parameters
    ----------
    url : urllib.parse.SplitResult
        The pilot's ``service_url``. A subclass checks it here.

    Raises
    ------
    DescriptionError
        If the URL names nothing that this launcher can use.
    """

    def __init__(self, url: SplitResult) -> None:
        self.url = url

    @abstractmethod
    def render(self, request: LaunchRequest) -> Command:
        """The command that runs the pilot. Starts and touches nothing."""

    @abstractmethod
    def submit(self, request: LaunchRequest) -> RunningPilot:
        """Start the pilot.

        Raises
        ------
        PilotLaunchError
            If it cannot be started. Nothing is left running then.
        """


def agent_arguments(request: LaunchRequest) -> tuple[str, ...]:
    """The arguments of :mod:`dpilot.pilots.agent` for a request whose workers all run on one node."""
    arguments = [
        *("--scheduler", request.scheduler),
        *("--pilot", request.pilot),
        *("--workers", str(request.workers)),
        *("--threads", str(request.threads_per_worker)),
        *("--last-threads", str(request.last_threads)),
        *("--working-directory", request.working_directory),
        *("--start-timeout", f"{request.start_timeout_s:g}"),
        *("--grace", f"{request.grace_s:g}"),
    ]
    if request.memory_nbytes is not None:
        arguments += ["--memory-limit", str(request.memory_nbytes)]
    if request.gpus_per_worker:
        arguments += ["--gpus", str(request.gpus_per_worker)]
    # One word each, so that a value may begin with a dash.
    arguments += [f"--tag={tag}" for tag in request.tags]
    arguments += [f"--preload={module}" for module in request.preload]
    return tuple(arguments)


def register_launcher(scheme: str, launcher: type[Launcher]) -> None:
    """Have pilots whose ``service_url`` has `scheme` started by `launcher`, in this process.

    Packages that are installed use an entry point in the group ``dpilot.launchers`` instead.
    """
    _registered[scheme] = EntryPoint(scheme, f"{launcher.__module__}:{launcher.__qualname__}", GROUP)


_registered: dict[str, EntryPoint] = {}


def _launchers() -> dict[str, EntryPoint]:
    others = {point.name: point for point in entry_points(group=GROUP)}
    return others | {scheme: EntryPoint(scheme, value, GROUP) for scheme, value in _BUILT_IN.items()} | _registered


def launcher_schemes() -> list[str]:
    """The URL schemes for which there is a launcher, sorted."""
    return sorted(_launchers())


def launcher_for(service_url: str) -> Launcher:
    """The launcher for a pilot's ``service_url``.

    Parameters
    ----------
    service_url : str
        Such as ``fork://localhost``. Its scheme chooses the launcher.

    Raises
    ------
    DescriptionError
        If it is not a URL, no launcher has its scheme, or the launcher cannot use it.
    PilotLaunchError
        If another package's launcher cannot be imported.
    """
    launchers = _launchers()
    known = ", ".join(f"{scheme}://" for scheme in sorted(launchers))
    try:
        url = urlsplit(service_url)
    except ValueError as error:
        raise _refusal(service_url, f"is malformed ({error}); launchers there are: {known}") from None
    if not url.scheme or "://" not in service_url:
        raise _refusal(service_url, f"has no scheme, such as fork://localhost has; launchers there are: {known}")
    if point := launchers.get(url.scheme):
        try:
            launcher: type[Launcher] = point.load()
        except (ImportError, AttributeError) as error:
            raise PilotLaunchError(
                f"the launcher for {url.scheme}:// ({point.value}) cannot be imported: {error}; "
                f"repair or remove the package that brings it"
            ) from error
        return launcher(url)
    base = url.scheme.partition("+")[0]
    if base in _LATER:
        reason = f"needs a launcher for {url.scheme}://, which will come in a later release"
    elif base in _GONE:
        reason = f"needs a launcher for {base}, which others can add: by an entry point in the group {GROUP!r}"
    else:
        reason = f"has the unknown scheme {url.scheme!r}"
    raise _refusal(service_url, f"{reason}; launchers there are: {known}")


def _refusal(service_url: str, reason: str) -> DescriptionError:
    return DescriptionError(f"service_url {service_url!r} {reason}", field="service_url", value=service_url)
