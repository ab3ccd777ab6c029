"""The URL of the scheduler that a service joins."""

from __future__ import annotations

import re

from dpilot.descriptions.parsers import redacted
from dpilot.errors import DescriptionError

__all__ = ["check_coordination_url"]

_ADDRESS = re.compile(r"(?:tcp|tls)://(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\s:/@*\[\]]+):(?P<port>\d{1,5})/?")
_FIX = "write tcp://HOST:PORT (or tls://HOST:PORT) of a `dask scheduler`, or leave it out for an embedded one"
#: Schemes of BigJob's coordination -> what ran there.
_FORMER = {"redis": "a Redis server", "advert": "an advert service"}


def check_coordination_url(url: str | None) -> str | None:
    """Give the address of a Dask scheduler back, without a slash at its end; None means an embedded one.

    Parameters
    ----------
    url : str or None
        ``tcp://HOST:PORT`` or ``tls://HOST:PORT``.

    Raises
    ------
    DescriptionError
        For anything else, such as the ``redis://`` and ``advert://`` URLs of BigJob.
    """
    if url is None:
        return None
    match = _ADDRESS.fullmatch(url) if isinstance(url, str) else None
    if match is not None and 0 < int(match["port"]) < 65536:
        return url.rstrip("/")
    value = redacted(url) if isinstance(url, str) else url
    former = _FORMER.get(url.partition("://")[0].lower()) if isinstance(url, str) else None
    why = f"names {former}, which dpilot does not need" if former else "is not the address of a Dask scheduler"
    raise DescriptionError(f"coordination_url {value!r} {why}; {_FIX}", field="coordination_url", value=value)
