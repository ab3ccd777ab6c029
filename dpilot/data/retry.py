"""Trying again what failed for a reason that may pass by itself."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from dpilot.errors import StoreError

__all__ = ["RETRY", "Retry", "may_pass"]

_T = TypeVar("_T")

_MAX_DELAY_S = 30.0

#: Refused, broken and silent connections; s3fs makes EBUSY of S3's "slow down", EREMOTEIO of its "internal error".
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EINTR"),
        *("ENETDOWN", "ENETRESET", "ENETUNREACH", "ENOTCONN", "EPIPE", "EREMOTEIO", "ESTALE", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
)
#: Of libraries that need not be there, by the names of package and class; an HTTP status below 500 decides otherwise.
_PASSING_CLASSES = frozenset(
    {
        "aiohttp.ClientConnectionError",
        "aiohttp.ClientPayloadError",
        "asyncssh.ChannelOpenError",
        "asyncssh.ConnectionLost",
        "asyncssh.SFTPConnectionLost",
        "asyncssh.SFTPNoConnection",
        "botocore.ConnectionError",
        "botocore.HTTPClientError",
        "botocore.IncompleteReadError",
        "botocore.ResponseStreamingError",
    }
)
_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class Retry:
    """How often something is tried again, and how soon: each wait is twice as long as the one before, up to 30 s.

    Parameters
    ----------
    times : int
        How often after the first failure; 0 for never.
    delay_s : float
        The first wait, in seconds. Waits are up to a half shorter, by chance, so that many who failed together do
        not come back together.
    """

    times: int = 5
    delay_s: float = 0.2

    def run(self, attempt: Callable[[], _T], stop: threading.Event) -> _T:
        """Call `attempt` until it does not fail, or fails for good.

        Parameters
        ----------
        attempt : callable
        stop : Event
            Once it is set, there is no further attempt, and a wait ends.

        Raises
        ------
        StoreError
            The last one.
        """
        for n in range(self.times):
            try:
                return attempt()
            except StoreError as error:
                delay_s = min(self.delay_s * 2**n, _MAX_DELAY_S) * random.uniform(0.5, 1)
                if not error.transient or stop.wait(delay_s):
                    raise
        return attempt()


#: What is usual.
RETRY = Retry()


def may_pass(error: BaseException | None) -> bool:
    """Whether the same may well succeed a little later: connections lost, time run out, a server that is too busy."""
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in _PASSING:
            return True
        status = _status(error)
        if status is not None:
            return status >= _SERVER_ERROR or status == _TOO_MANY_REQUESTS
        if any(f"{cls.__module__.partition('.')[0]}.{cls.__name__}" in _PASSING_CLASSES for cls in type(error).__mro__):
            return True
        error = error.__cause__
    return False


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error of aiohttp or botocore."""
    status = getattr(error, "status", None)
    if status is None and isinstance(response := getattr(error, "response", None), dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None
