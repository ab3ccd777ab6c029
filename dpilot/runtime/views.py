"""Data units as the matcher sees them: worked out from their records when it looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dpilot.placement import InputView
from dpilot.runtime.records import Records

__all__ = ["DataViews"]


class DataViews(Mapping[str, InputView]):
    """The data units of the records, by id."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def __getitem__(self, du: str) -> InputView:
        data, stores = self._records.data[du], self._records.stores
        if data.seen is None:
            manifest = data.manifest
            sites = sum((stores[pd].sites for pd in data.replicas), ()) + tuple(data.cached)
            nbytes, n_files = (manifest.nbytes, len(manifest.files)) if manifest else (0, 0)
            data.seen = InputView(du, nbytes, n_files, sites, len(data.replicas))
        return data.seen

    def __iter__(self) -> Iterator[str]:
        return iter(self._records.data)

    def __len__(self) -> int:
        return len(self._records.data)
