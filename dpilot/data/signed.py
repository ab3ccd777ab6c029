"""Ranges of an object by plain HTTP and a signed URL: from the socket into memory that is used again.

It spares the processor half the work of any client that gives new memory with every piece, and that is what limits a
fast network.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

__all__ = ["SignedObject"]

_PIECE = 256 * 1024  # small enough to stay in the processor's cache while it is hashed and written
_TIMEOUT_S = 60.0
_RESUMES = 2  # how often one range is asked for again, from where it broke off
_PARTIAL = 206


class SignedObject:
    """One object, read over one connection by one thread.

    Parameters
    ----------
    sign : callable
        Gives a URL to get the object with. It is a secret, and asked for anew for each range, as it expires.
    etag : str or None
        Of the content to be read.
    ca_bundle : Path, optional
        The certificates to trust; by default, those of the system.
    """

    def __init__(self, sign: Callable[[], str], etag: str | None, ca_bundle: Path | None = None) -> None:
        self._sign = sign
        self._headers = {"If-Match": etag} if etag else {}
        self._ca_bundle = ca_bundle
        self._connection: HTTPConnection | None = None

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def stream(self, part: range) -> Iterator[memoryview]:
        """Ask for part of the object.

        Returns
        -------
        iterator of memoryview
            The bytes in pieces; each is valid until the next one is asked for. If the connection breaks, it goes on
            from there.

        Raises
        ------
        OSError
            If the server does not give it, or cannot be reached.
        """
        return self._pieces(part, self._get(part))

    def _pieces(self, part: range, response: HTTPResponse) -> Iterator[memoryview]:
        view = memoryview(bytearray(_PIECE))
        start, resumes = part.start, 0
        while True:
            try:
                while count := response.readinto(view):
                    yield view[:count]
                    start += count
                if start == part.stop:
                    return
                raise ConnectionError(f"the connection was closed {part.stop - start} bytes before the end")
            except (OSError, HTTPException) as error:
                self.close()
                resumes += 1
                if resumes > _RESUMES:
                    raise error if isinstance(error, OSError) else ConnectionError(str(error)) from None
                response = self._get(range(start, part.stop))

    def _get(self, part: range) -> HTTPResponse:
        url = urlsplit(self._sign())
        if self._connection is None:
            self._connection = self._connect(url.scheme, url.hostname or "", url.port)
        try:
            headers = {"Range": f"bytes={part.start}-{part.stop - 1}", **self._headers}
            self._connection.request("GET", f"{url.path}?{url.query}" if url.query else url.path, headers=headers)
            response = self._connection.getresponse()
        except HTTPException as error:
            self.close()
            raise ConnectionError(str(error) or type(error).__name__) from None
        except OSError:
            self.close()
            raise
        if response.status != _PARTIAL or response.length != len(part):
            self.close()
            raise OSError(f"the server answered {response.status} {response.reason}")
        return response

    def _connect(self, scheme: str, host: str, port: int | None) -> HTTPConnection:
        if scheme in getproxies() and not proxy_bypass(host):
            raise OSError("a proxy is between")
        if scheme == "https":
            context = ssl.create_default_context(cafile=self._ca_bundle)
            return HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
        return HTTPConnection(host, port, timeout=_TIMEOUT_S)
