"""A site's network on this machine: what is near is reached at once, all else over a slow line.

Programs that are told of it (``HTTP_PROXY``) send their requests through it. It passes them on, makes those to other
sites as slow as the line is, and counts the bytes of both.
"""

from __future__ import annotations

import asyncio
import threading
from urllib.parse import urlsplit

__all__ = ["Gateway"]

_PIECE = 16 * 1024


class Gateway:
    """A proxy for plain HTTP, which serves from a thread of its own until it is closed.

    Parameters
    ----------
    near : str
        URL of the server that is at this site.
    bandwidth : float
        Of the line to other sites: bytes per second in each direction, of all connections together.
    latency_s : float
        What a byte takes over the line, one way.
    """

    def __init__(self, near: str, bandwidth: float, latency_s: float) -> None:
        self.bandwidth = bandwidth
        self.latency_s = latency_s
        self.near_nbytes = 0
        """Bytes to and from the server that is at this site."""
        self.far_nbytes = 0
        """Bytes to and from other sites."""
        self._near = urlsplit(near).netloc
        self._free_at = {"out": 0.0, "in": 0.0}  # when the line has carried what was sent so far
        self._serving = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="gateway", daemon=True)
        self._thread.start()
        self._serving.wait()

    @property
    def environment(self) -> dict[str, str]:
        """What programs are to have in their environment."""
        return {"HTTP_PROXY": self._url, "http_proxy": self._url, "NO_PROXY": "", "no_proxy": ""}

    def close(self) -> None:
        """Serve no more."""
        self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._closed = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._serving.set()
        await self._closed.wait()
        server.close()  # the connections end with the loop

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """One connection, to the server that the first request names: HTTP/1.1's servers take a proxy's requests."""
        writers = [to_client]
        try:
            request = await client.readline()
            if not request:
                return
            there = urlsplit(request.split()[1].decode())
            is_near = there.netloc == self._near
            server, to_server = await asyncio.open_connection(there.hostname, there.port or 80)
            writers.append(to_server)
            await asyncio.gather(
                self._carry("out", is_near, request, client, to_server),
                self._carry("in", is_near, b"", server, to_client),
            )
        except (OSError, asyncio.CancelledError):
            pass  # one end has gone, which the other one will see; or the gateway is closed
        finally:
            for writer in writers:
                writer.close()

    async def _carry(
        self, way: str, is_near: bool, piece: bytes, source: asyncio.StreamReader, target: asyncio.StreamWriter
    ) -> None:
        """Move bytes one way."""
        while piece or (piece := await source.read(_PIECE)):
            if is_near:
                self.near_nbytes += len(piece)
                target.write(piece)
                await target.drain()
            else:
                self.far_nbytes += len(piece)
                now = self._loop.time()
                self._free_at[way] = max(now, self._free_at[way]) + len(piece) / self.bandwidth
                await asyncio.sleep(self._free_at[way] - now)
                self._loop.call_later(self.latency_s, _write, target, piece)
            piece = b""
            if target.is_closing():  # a reader that has all it wants
                raise ConnectionResetError
        await asyncio.sleep(0.0 if is_near else self.latency_s)
        target.write_eof()


def _write(target: asyncio.StreamWriter, piece: bytes) -> None:
    """Write what was on the line, if there still is somebody at its end: asyncio complains otherwise."""
    if not target.is_closing():
        target.write(piece)
