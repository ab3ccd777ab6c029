"""What mpirun starts for each further host of a gang, as it would start ssh: it has dpilot start the proxy there.

    python proxy_launcher.py SOCKET [-x] HOST COMMAND...

It asks the worker that runs mpirun, by a socket, and lasts as long as the proxy: when one ends, so does the other. It
runs by its path and imports little, for every host of a unit waits for it.
"""

from __future__ import annotations

import json
import socket
import sys

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Ask for a proxy and wait for its end; the exit status of it."""
    path, *rest = arguments
    while rest and rest[0].startswith("-"):  # what is meant for ssh
        rest = rest[1:]
    host, *command = rest
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(path)
        line.sendall(json.dumps({"host": host, "command": command}).encode() + b"\n")
        with line.makefile("r") as answers:
            answer = json.loads(answers.readline() or '{"code": 255, "text": ""}')
    sys.stderr.write(answer["text"])
    return int(answer["code"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
