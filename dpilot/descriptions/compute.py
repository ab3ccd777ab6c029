"""Descriptions of pilots (pools of workers) and of the work that runs on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dpilot.descriptions import parsers as p
from dpilot.descriptions.parsers import FileTransfer, Output
from dpilot.descriptions.table import Description, key, refusal

__all__ = ["ComputeUnitDescription", "ComputeUnitSpec", "PilotComputeDescription", "PilotSpec"]

_DATACENTER = "affinity_datacenter_label"
_MACHINE = "affinity_machine_label"
_SLOTS = ("number_of_processes", "total_cpu_count", "total_core_count")
_WALLTIME = ("walltime", "wall_time_limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotSpec:
    """A checked :class:`PilotComputeDescription`."""

    service_url: str = key(
        p.service_url, "where to start it; the scheme chooses the launcher, such as fork://localhost", required=True
    )
    slots: int = key(p.count, "slots in all", names=_SLOTS, default=1)
    slots_per_node: int | None = key(p.count, "slots on each node", names=("processes_per_node", "processes_per_host"))
    working_directory: str | None = key(p.path, "holds the sandboxes of the units; as seen by the pilot's machine")
    project: str | None = key(p.label, "the allocation that a batch system charges")
    queue: str | None = key(p.label, "the batch system's queue or partition")
    walltime_s: float | None = key(p.minutes, "minutes until the pilot ends", names=_WALLTIME)
    candidate_hosts: tuple[str, ...] = key(p.labels, "the only hosts to run on", default=())
    stdin: str | None = key(p.path, "file that the pilot's job reads", names=("input",))
    stdout: str | None = key(p.path, "file for the output of the pilot's job", names=("output",))
    stderr: str | None = key(p.path, "file for the errors of the pilot's job", names=("error",))
    file_transfer: tuple[FileTransfer, ...] = key(
        p.file_transfers, '"SOURCE > TARGET" strings; TARGET lies in the working directory', default=()
    )
    spmd_variation: Literal["single", "mpi"] = key(p.one_of("single", "mpi"), '"single" or "mpi"', default="single")
    datacenter: str | None = key(p.label, "label of the place it is in", names=(_DATACENTER,))
    machine: str | None = key(p.label, "label of the machine or file system it is on", names=(_MACHINE,))
    threads_per_worker: int | None = key(
        p.count, "slots of each worker process; the last gets the rest (none given: see the configuration)"
    )
    memory_per_worker_nbytes: int | None = key(
        p.nbytes, 'memory of each worker: bytes, or "4 GB"', names=("memory_per_worker",)
    )
    gpus_per_worker: int = key(p.count_or_0, "GPUs of each worker, which share the node's in order", default=0)
    environment: Mapping[str, str] = key(
        p.environment, "variables for the workers; values may be numbers", default=dict
    )
    launcher_options: Mapping[str, Any] = key(p.options, "what only the launcher understands", default=dict)

    @property
    def scheme(self) -> str:
        """The scheme of `service_url`, which chooses the launcher."""
        return self.service_url.partition("://")[0]


class PilotComputeDescription(Description[PilotSpec], spec=PilotSpec):
    """What a pilot should be: a dict with attribute access.

    Whether there is a launcher for the scheme of ``service_url`` is the launchers' to say: only the URL's form is
    checked.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeUnitSpec:
    """A checked :class:`ComputeUnitDescription`."""

    executable: str | Callable[..., Any] = key(
        p.executable, "a program's name or path, or a Python callable", required=True
    )
    arguments: tuple[str, ...] = key(
        p.arguments,
        "of a program: list of strings, numbers, paths; or one string, split as a shell would. [''] means none",
        default=(),
    )
    args: tuple[Any, ...] = key(p.args, "positional arguments of a callable", default=())
    kwargs: Mapping[str, Any] = key(p.options, "keyword arguments of a callable", default=dict)
    environment: Mapping[str, str] = key(p.environment, "variables for a program; values may be numbers", default=dict)
    working_directory: str | None = key(p.path, "where to run, instead of a sandbox of its own; made if not there")
    stdin: str | None = key(p.input_name, "file that a program reads, from the sandbox or absolute", names=("input",))
    stdout: str = key(
        p.safe_name, "file in the sandbox for a program's output", names=("output",), default="stdout.txt"
    )
    stderr: str = key(p.safe_name, "file in the sandbox for a program's errors", names=("error",), default="stderr.txt")
    slots: int = key(p.count, "slots that it holds while it runs", names=_SLOTS, default=1)
    spmd_variation: Literal["single", "mpi"] = key(
        p.one_of("single", "mpi"),
        'whether a program runs once ("single"), or as an MPI program with a rank in each of its slots ("mpi")',
        default="single",
    )
    input_data: tuple[Any, ...] = key(
        p.data_units, "data units (handles or URLs) to stage into the sandbox", default=()
    )
    input_mode: Literal["link", "copy"] = key(
        p.one_of("link", "copy"),
        'whether input files are links, not to be written ("link"), or the unit\'s own copies ("copy")',
        default="link",
    )
    output_data: tuple[Output, ...] = key(
        p.outputs, "list of {data unit: glob or [globs]}; a name makes a new data unit", default=()
    )
    empty_output: Literal["warn", "error"] = key(
        p.one_of("warn", "error"),
        'whether an output glob that matches no file is told ("warn"), or makes the unit fail ("error")',
        default="warn",
    )
    file_transfer: tuple[FileTransfer, ...] = key(
        p.file_transfers, '"SOURCE > TARGET" strings; TARGET lies in the sandbox', default=()
    )
    datacenter: str | None = key(p.label, "label of the place to run in", names=(_DATACENTER,))
    machine: str | None = key(p.label, "label of the machine to run on", names=(_MACHINE,))
    affinity: Literal["prefer", "require"] = key(
        p.one_of("prefer", "require"),
        'whether the labels are a wish ("prefer") or a must ("require")',
        default="prefer",
    )
    retries: int = key(p.count_or_0, "how often to try again after a failure", default=0)
    walltime_s: float | None = key(p.minutes, "minutes until it is ended", names=_WALLTIME)
    memory_nbytes: int | None = key(p.nbytes, 'memory that it needs: bytes, or "4 GB"', names=("memory",))
    gpus: int = key(p.count_or_0, "GPUs that it needs", default=0)
    priority: float = key(p.number, "units of higher priority go first", default=0.0)
    name: str | None = key(p.label, "for people to read")

    @property
    def is_callable(self) -> bool:
        """Whether it is a Python callable, not a program."""
        return not isinstance(self.executable, str)


class ComputeUnitDescription(Description[ComputeUnitSpec], spec=ComputeUnitSpec):
    """One piece of work: a program, or a Python callable. A dict with attribute access.

    ``$NAME`` and ``${NAME}`` in ``arguments`` are expanded from the unit's environment when it runs; no shell is
    involved (see :func:`dpilot.descriptions.expand`).

    The slots of an MPI program may be on several hosts of one pilot. Then it needs MPICH's ``mpirun``, and no sshd. The
    hosts share its working directory where they share the pilot's; otherwise each has one of its own at the same
    path, with the unit's inputs. Standard input, output and error, and ``output_data``, are those of the first host.
    """

    def _finish(self, spec: ComputeUnitSpec) -> ComputeUnitSpec:
        for name, given, default, advice in _MISFITS[spec.is_callable]:
            value = getattr(spec, given)
            if value != default:
                raise refusal(name, self[name], advice)
        return spec


# What cannot work is refused, not ignored: (key, attribute, its default, what is wrong and what to do instead).
_MISFITS: dict[bool, list[tuple[str, str, Any, str]]] = {
    False: [
        ("args", "args", (), "is for Python callables, but the executable is a program; write 'arguments'"),
        ("kwargs", "kwargs", {}, "is for Python callables, but the executable is a program; write 'arguments'"),
    ],
    True: [
        (
            "arguments",
            "arguments",
            (),
            "is for programs, but the executable is a Python callable; write 'args' and 'kwargs'",
        ),
        (
            "environment",
            "environment",
            {},
            "is for programs, but the executable is a Python callable; give it to the pilot",
        ),
        ("input", "stdin", None, "is for programs, but the executable is a Python callable; let it open the file"),
        ("output", "stdout", "stdout.txt", "is for programs, but the executable is a Python callable; use result()"),
        ("error", "stderr", "stderr.txt", "is for programs, but the executable is a Python callable; use exception()"),
        (
            "spmd_variation",
            "spmd_variation",
            "single",
            "is for programs, but the executable is a Python callable; write 'single'",
        ),
    ],
}
