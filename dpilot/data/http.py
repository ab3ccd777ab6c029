"""Files on web servers: to be read, never written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any, ClassVar, NoReturn

from dpilot.data.location import Chunks, Location
from dpilot.errors import StoreError

__all__ = ["HTTP", "HttpLocation"]

#: Its protocols.
HTTP = frozenset({"http", "https"})


@dataclass(frozen=True, slots=True)
class HttpLocation(Location):
    """A file on a web server."""

    read_only: ClassVar[bool] = True

    def _stream(self) -> Any:
        # 0 makes a stream of it: not every web server can begin in the middle of a file.
        return self.fs.open(self.path, "rb", block_size=0)

    def open(self, mode: str = "rb") -> IO[Any]:
        """Open a file to be read; it can seek where the server can begin in the middle of a file."""
        with self.errors("read"):
            if not self.fs.info(self.path).get("partial"):
                return self._as(self._stream(), mode)
        return super(HttpLocation, self).open(mode)

    def write_bytes(self, data: bytes, *, exclusive: bool = False) -> NoReturn:
        """Refused."""
        self._refuse("write")

    def write(self, chunks: Chunks, nbytes: int | None = None, *, mode: int = 0o444) -> NoReturn:
        """Refused."""
        self._refuse("write")

    def prepare(self) -> NoReturn:
        """Refused."""
        self._refuse("make a store of")

    def remove(self) -> NoReturn:
        """Refused."""
        self._refuse("remove")

    def remove_tree(self) -> NoReturn:
        """Refused."""
        self._refuse("remove")

    def _refuse(self, action: str) -> NoReturn:
        raise StoreError(
            f"cannot {action} {self.url}: files on web servers can only be read; name them in a data unit's file_urls",
            url=self.url,
        )
