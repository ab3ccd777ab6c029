"""One URL per object: ``dpilot://HOST:PORT/ID``, the scheduler's contact address and the object's id.

For a data unit the same URL with ``/NAME`` behind it names one of its files.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from urllib.parse import quote, unquote

from dpilot.errors import DescriptionError

__all__ = ["KINDS", "ObjectURL", "new_id"]

#: Prefix of an object's id -> what it is.
KINDS = {
    "pcs": "PilotComputeService",
    "pc": "PilotCompute",
    "pds": "PilotDataService",
    "pd": "PilotData",
    "cds": "ComputeDataService",
    "cu": "ComputeUnit",
    "du": "DataUnit",
}

_ID = rf"(?P<id>(?P<kind>{'|'.join(KINDS)})-[0-9a-f]{{12}})"
_URL = re.compile(rf"dpilot(?:\+(?P<protocol>tls))?://(?P<address>[^/\s]+:[0-9]+)/{_ID}(?:/(?P<name>.+))?", re.DOTALL)


def new_id(kind: str) -> str:
    """A fresh id, such as ``cu-5f0c3a9b12de``, for one of the :data:`KINDS`."""
    return f"{kind}-{uuid.uuid4().hex[:12]}"


@dataclass(frozen=True, slots=True)
class ObjectURL:
    """The parts of an object's URL.

    Parameters
    ----------
    scheduler : str
        The Dask scheduler's contact address, such as ``tcp://10.0.0.1:8786``.
    id : str
        The object's id; its prefix says what it is.
    name : str
        For a data unit: the name of a file in it; empty for the unit itself.
    """

    scheduler: str
    id: str
    name: str = ""

    def __str__(self) -> str:
        protocol, _, address = self.scheduler.partition("://")
        scheme = "dpilot+tls" if protocol == "tls" else "dpilot"
        file = f"/{quote(self.name)}" if self.name else ""
        return f"{scheme}://{address}/{self.id}{file}"

    @classmethod
    def parse(cls, url: str, kind: str | None = None) -> ObjectURL:
        """Take a URL apart.

        Parameters
        ----------
        url : str
        kind : str, optional
            The prefix that the id must have, one of :data:`KINDS`.

        Raises
        ------
        DescriptionError
            If it is not an object's URL, or names another kind of object.
        """
        match = _URL.fullmatch(url) if isinstance(url, str) else None
        if match is None:
            raise DescriptionError(
                f"url {url!r} is not the URL of an object; write dpilot://HOST:PORT/ID, as get_url() returns it",
                field="url",
                value=url,
            )
        found = match["kind"]
        if kind is not None and found != kind:
            raise DescriptionError(
                f"url {url!r} names a {KINDS[found]}, not a {KINDS[kind]}; use {KINDS[found]}(...) to reconnect to it",
                field="url",
                value=url,
            )
        return cls(f"{match['protocol'] or 'tcp'}://{match['address']}", match["id"], unquote(match["name"] or ""))
