"""Descriptions of stores and of the sets of files that lie in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dpilot.descriptions import parsers as p
from dpilot.descriptions.table import Description, key, refusal

__all__ = ["DataUnitDescription", "DataUnitSpec", "PilotDataDescription", "StoreSpec"]

_DATACENTER = "affinity_datacenter_label"
_MACHINE = "affinity_machine_label"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSpec:
    """A checked :class:`PilotDataDescription`."""

    url: str = key(
        p.store_url,
        "where it is, such as file:///data/store or s3://bucket/prefix",
        names=("service_url",),
        required=True,
    )
    size_nbytes: int | None = key(p.megabytes, 'how much it may hold: megabytes, or "10 GB"', names=("size",))
    storage_options: Mapping[str, Any] = key(
        p.options, "what fsspec needs to reach it; credentials belong here", default=dict, secret=True
    )
    datacenter: str | None = key(p.label, "label of the place it is in", names=(_DATACENTER,))
    machine: str | None = key(p.label, "label of the machine or file system it is on", names=(_MACHINE,))
    userkey: str | None = key(p.path, "path of an ssh key")


class PilotDataDescription(Description[StoreSpec], spec=StoreSpec):
    """What a store should be: a dict with attribute access. A megabyte is 1,000,000 bytes.

    ``ssh://localhost/PATH`` with neither user, port nor storage options is this machine, as in BigJob: ``file:///PATH``.
    Whether fsspec knows the scheme of ``service_url`` is for the store to say: only the URL's form is checked.
    """

    def _finish(self, spec: StoreSpec) -> StoreSpec:
        if spec.userkey is not None and spec.url.partition("://")[0].lower() not in ("sftp", "ssh"):
            raise refusal("userkey", spec.userkey, f"is a key for ssh, and {spec.url} is not reached by ssh")
        path = None if spec.storage_options or spec.userkey else p.local_path(spec.url)
        return spec if path is None else replace(spec, url=f"file://{path}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataUnitSpec:
    """A checked :class:`DataUnitDescription`."""

    file_urls: tuple[str, ...] = key(p.file_urls, "paths, URLs, directories and globs of the files", default=())
    file_url_patterns: tuple[str, ...] = key(p.file_urls, "further globs, as in file_urls", default=())
    replicas: int = key(p.count, "how many stores shall hold it", names=("number_of_replicas",), default=1)
    datacenter: str | None = key(p.label, "label of the place to keep it in", names=(_DATACENTER,))
    machine: str | None = key(p.label, "label of the machine to keep it on", names=(_MACHINE,))
    storage_options: Mapping[str, Any] = key(
        p.options, "what fsspec needs to reach file_urls; credentials belong here", default=dict, secret=True
    )
    register: bool = key(p.flag, "use the files where they lie, without a copy", default=False)
    checksums: bool = key(p.flag, "read files that are registered once, to know their checksums", default=False)
    name: str | None = key(p.unit_name, "for people to read")


class DataUnitDescription(Description[DataUnitSpec], spec=DataUnitSpec):
    """A set of files: a dict with attribute access. Without ``file_urls`` it is empty, for compute units to fill."""

    def _finish(self, spec: DataUnitSpec) -> DataUnitSpec:
        if spec.register and not (spec.file_urls or spec.file_url_patterns):
            raise refusal("register", True, "needs files that are there already; name them in file_urls")
        if spec.checksums and not spec.register:
            raise refusal("checksums", True, "goes with register: files that are copied always have checksums")
        return spec
