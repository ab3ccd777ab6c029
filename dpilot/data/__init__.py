"""Files, and where they are: names, manifests, stores, and verified copies between them. Knows fsspec, not Dask."""

from dpilot.data.cache import Cache, entry_name, is_entry
from dpilot.data.checksum import Hasher
from dpilot.data.manifest import FileEntry, Manifest
from dpilot.data.moves import Stop, Terms
from dpilot.data.names import check_name, check_pattern, collect
from dpilot.data.registered import Registered
from dpilot.data.retry import Retry
from dpilot.data.sources import Source, expand_sources
from dpilot.data.staging import link_files, stage_in, stage_out
from dpilot.data.store import Store
from dpilot.data.transfer import copy_files, copy_unit, download, fetch, upload
from dpilot.data.verify import FileProblem, verify

__all__ = [
    "Cache",
    "FileEntry",
    "FileProblem",
    "Hasher",
    "Manifest",
    "Registered",
    "Retry",
    "Source",
    "Stop",
    "Store",
    "Terms",
    "check_name",
    "check_pattern",
    "collect",
    "copy_files",
    "copy_unit",
    "download",
    "entry_name",
    "expand_sources",
    "fetch",
    "is_entry",
    "link_files",
    "stage_in",
    "stage_out",
    "upload",
    "verify",
]
