"""Places at which nothing is ever written or removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NoReturn

from dpilot.data.location import Chunks, Location
from dpilot.errors import StoreError

__all__ = ["ReadOnlyLocation"]


@dataclass(frozen=True, slots=True)
class ReadOnlyLocation(Location):
    """A place that refuses all changes; a subclass says why."""

    read_only: ClassVar[bool] = True
    #: The rest of the sentence that refuses, with what to do instead.
    why: ClassVar[str] = ""

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
        raise StoreError(f"cannot {action} {self.url}: {self.why}", url=self.url)
