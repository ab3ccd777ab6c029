"""One executable: started in its sandbox, waited for without polling, ended with all that it started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections import ChainMap, deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from dpilot.descriptions import expand
from dpilot.errors import ExecutableError
from dpilot.runtime.work import Program

__all__ = ["MARK", "RunningProgram"]

#: How much of the end of an error stream is looked at.
_TAIL_NBYTES = 1 << 16
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
#: A variable that names an attempt: its processes leave the program's group, but keep this.
MARK = "DPILOT_ATTEMPT"


class RunningProgram:
    """A program of a unit, in a session and process group of its own.

    Parameters
    ----------
    program : Program
    directory : Path
        Where it runs; there are its input, output and error files.
    environment : mapping of str to str
        Variables beside those of the worker and of the program's description. With :data:`MARK` among them, all
        processes that have inherited it end with the program.
    wrap : callable, optional
        Gives the command that starts the program, from the program's own (its path first) and its environment.

    Raises
    ------
    ExecutableError
        If it cannot be started: not found, not executable, or a file cannot be opened.
    """

    def __init__(
        self,
        program: Program,
        directory: Path,
        environment: Mapping[str, str],
        wrap: Callable[[list[str], Mapping[str, str]], list[str]] | None = None,
    ) -> None:
        self.program = program
        self.directory = directory
        self._killer: threading.Timer | None = None  # once it was told to end
        self._killed = False
        self._mark = environment.get(MARK)
        own = {**environment, **program.environment}
        variables = ChainMap(own, os.environ)
        executable = expand(program.executable, variables)
        path = self._find(executable, variables.get("PATH"))
        command = [executable, *(expand(argument, variables) for argument in program.arguments)]
        if wrap is not None:
            command = wrap([path, *command[1:]], variables)
            path = command[0]
        files: list[int] = []
        try:
            files.append(os.open(directory / program.stdin if program.stdin else os.devnull, os.O_RDONLY))
            files.append(self._create(program.stdout))
            files.append(self._create(program.stderr))
            self._popen = subprocess.Popen(
                command,
                executable=path,
                cwd=directory,
                # In bytes, as the system has them: to decode and encode all of them takes a tenth of a millisecond.
                env={**os.environb, **{os.fsencode(name): os.fsencode(value) for name, value in own.items()}},
                stdin=files[0],
                stdout=files[1],
                stderr=files[2],
                start_new_session=True,
            )
        except OSError as error:
            raise ExecutableError(
                f"executable {executable!r} could not be started: {error.strerror or error}"
                + (f" ({error.filename})" if error.filename else "")
            ) from None
        except ValueError as error:  # such as a NUL in an argument
            raise ExecutableError(f"executable {executable!r} could not be started: {error}") from None
        finally:
            for file in files:
                os.close(file)

    def _create(self, name: str) -> int:
        path = self.directory / name
        try:
            return os.open(path, _WRITE, 0o666)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, _WRITE, 0o666)

    def _find(self, executable: str, search: str | None) -> str:
        if "/" not in executable:
            found = shutil.which(executable, path=search)
            if found is not None:
                return found
            if not (self.directory / executable).is_file():
                raise ExecutableError(
                    f"executable {executable!r} was not found on the PATH of the pilot; "
                    "give its whole path, or stage it in and write ./NAME"
                )
            executable = f"./{executable}"
        path = self.directory / executable
        if os.access(path, os.X_OK) and not path.is_dir():
            return str(path)
        if not path.exists():
            raise ExecutableError(f"executable {executable!r} does not exist on the pilot's machine; check its path")
        raise ExecutableError(
            f"executable {executable!r} is not executable; `chmod +x` it, or run it with its interpreter"
        )

    def wait(self, walltime_s: float | None, stderr_lines: int) -> None:
        """Wait for its end.

        Parameters
        ----------
        walltime_s : float, optional
            After which it is ended.
        stderr_lines : int
            How many of the last lines of its error stream an error carries.

        Raises
        ------
        ExecutableError
            If it ended with a status other than 0, or ran out of time.
        """
        overdue = threading.Event()
        if walltime_s is not None:  # Popen.wait(timeout) would poll

            def end() -> None:
                overdue.set()
                self.stop(0.0)

            timer = threading.Timer(walltime_s, end)
            timer.daemon = True
            timer.start()
        code = self._popen.wait()
        if walltime_s is not None:
            timer.cancel()
        if self._killer is not None:
            self._wait_for_group()
        if overdue.is_set():
            raise ExecutableError(
                f"{self.program.executable!r} was ended after its walltime of {walltime_s:g} s; "
                "ask for more walltime, or give it less to do",
                exit_code=None,
                stderr=self._tail(stderr_lines),
            )
        if code != 0:
            tail = self._tail(stderr_lines)
            how = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
            shown = f"; the end of {self.program.stderr}:\n{tail}" if tail else f"; {self.program.stderr} is empty"
            raise ExecutableError(f"{self.program.executable!r} {how}{shown}", exit_code=code, stderr=tail)

    def stop(self, grace_s: float) -> None:
        """End its whole process group: with SIGTERM, and what is left after `grace_s` seconds with SIGKILL."""
        self._killer = threading.Timer(grace_s, self._kill)
        self._killer.daemon = True
        if grace_s > 0:
            self._signal(signal.SIGTERM)
            self._killer.start()
        else:
            self._kill()

    def _wait_for_group(self) -> None:
        """Wait until all of a group that was told to end is gone: its slots are taken until then."""
        self._popen.wait()
        assert self._killer is not None
        while members := self._members():
            if self._killed:  # what began while the others were killed
                self._kill(members)
            for process in members:
                with suppress(psutil.Error):
                    process.wait()
        self._killer.cancel()  # the group's number may soon be another's

    def _members(self) -> list[psutil.Process]:
        return [process for process in psutil.process_iter() if self._has(process)]

    def _has(self, process: psutil.Process) -> bool:
        with suppress(ProcessLookupError, psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            if os.getpgid(process.pid) == self._popen.pid:
                return True
            return self._mark is not None and process.environ().get(MARK) == self._mark
        return False

    def _kill(self, members: Collection[psutil.Process] | None = None) -> None:
        self._killed = True
        self._signal(signal.SIGKILL)
        if self._mark is not None:
            for process in self._members() if members is None else members:
                with suppress(psutil.Error):
                    process.kill()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, number)

    def _tail(self, n_lines: int) -> str:
        with suppress(OSError), (self.directory / self.program.stderr).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_NBYTES))
            return "\n".join(deque(file.read().decode(errors="replace").splitlines(), n_lines))
        return ""
