"""Files on web servers: to be read, never written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any, ClassVar

from dpilot.data.readonly import ReadOnlyLocation

__all__ = ["HTTP", "HttpLocation"]

#: Its protocols.
HTTP = frozenset({"http", "https"})


@dataclass(frozen=True, slots=True)
class HttpLocation(ReadOnlyLocation):
    """A file on a web server."""

    why: ClassVar[str] = "files on web servers can only be read; name them in a data unit's file_urls"

    def _stream(self) -> Any:
        # 0 makes a stream of it: not every web server can begin in the middle of a file.
        return self.fs.open(self.path, "rb", block_size=0)

    def open(self, mode: str = "rb") -> IO[Any]:
        """Open a file to be read; it can seek where the server can begin in the middle of a file."""
        with self.errors("read"):
            if not self.fs.info(self.path).get("partial"):
                return self._as(self._stream(), mode)
        return super(HttpLocation, self).open(mode)
