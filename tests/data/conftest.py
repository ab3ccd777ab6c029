"""Stores of every kind, and files to put into them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from dpilot.data import Manifest, Source, Store, expand_sources, upload
from tests.services import S3, Sshd

#: Legal on POSIX and in S3, and each has been some program's undoing.
ODD_NAMES = (
    "with space.txt",
    "-leading-dash",
    "quote'and\"quote",
    "new\nline",
    "tab\tand\rreturn",
    "ünïcödé-日本語-🙂",
    "e\u0301 decomposed",
    "back\\slash",
    "asterisk*?[a-z]{b}",
    "percent%20and+plus",
    "hash#and?query=1&b=2",
    "semi;colon:at@$HOME",
    "~tilde",
    "sub dir/deep/.hidden",
    "...",
)

MakeStore = Callable[..., Store]


@pytest.fixture(params=["file", "memory", "sftp", pytest.param("s3", marks=pytest.mark.s3)])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeStore]:
    """A function that makes a new, open store of the protocol that the test runs with."""
    made = []

    def make(**kwargs: object) -> Store:
        unique = uuid.uuid4().hex[:8]
        if request.param == "s3":
            server: S3 = request.getfixturevalue("s3")
            store = Store(f"s3://{server.place()}/some prefix", server.storage_options, **kwargs)
        elif request.param == "sftp":
            sshd: Sshd = request.getfixturevalue("sshd")
            store = Store(sshd.url(tmp_path / f"sftp [{unique}]"), sshd.storage_options, **kwargs)
        elif request.param == "memory":
            store = Store(f"memory://{unique}/store", **kwargs)
        else:
            store = Store(tmp_path / f"store [{unique}]", **kwargs)
        made.append(store)
        return store.open()

    yield make
    for store in made:
        if store.root.protocol == "memory":
            fsspec.filesystem("memory").rm(store.root.path, recursive=True)


@pytest.fixture
def store(make_store: MakeStore) -> Store:
    return make_store()


def write_files(directory: Path, files: dict[str, bytes]) -> Path:
    """Make a directory with these files."""
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def read_files(directory: Path) -> dict[str, bytes]:
    """What is in a directory, by relative name."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def sources(directory: Path, files: dict[str, bytes]) -> dict[str, Source]:
    """Make files, and name them as sources."""
    return expand_sources([f"{write_files(directory, files)}/"])


def put(store: Store, du: str, directory: Path, files: dict[str, bytes]) -> Manifest:
    """Make a data unit of these files."""
    return upload(sources(directory, files), store, du)


def plant(store: Store, du: str, name: str, content: bytes) -> None:
    """Put a file into a store behind its back."""
    store.root.child(du).child(name).write_bytes(content)


def left(store: Store) -> set[str]:
    """All that is in a store, but for its marker."""
    return set(store.root.sizes()) - {".dpilot-store.json"}


def content(store: Store, du: str, name: str) -> bytes:
    """What a file in a store holds."""
    with store.open_file(du, name) as file:
        return bytes(file.read())
