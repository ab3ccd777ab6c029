from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from dpilot.data import Registered, Store, copy_unit, download, expand_sources, link_files, verify
from dpilot.errors import ChecksumError, DataError, ManifestError, StoreError
from tests.data.conftest import content, put, read_files, write_files
from tests.services import S3, Sshd, Web

DU = "du-0123456789ab"
FILES = {"a": b"abc", "sub/b c": b"x" * 100_000, "empty": b""}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_files(tmp_path / "mine", FILES)


def test_files_of_this_machine(directory: Path, tmp_path: Path) -> None:
    store = Registered.of(DU, expand_sources([f"{directory}/"]), datacenter="eu", machine="m")
    manifest = store.manifest
    assert (store.url, store.datacenter, store.machine, store.nbytes_limit) == (f"file://{directory}", "eu", "m", None)
    assert store.list_units() == [DU]
    assert store.read_manifest(DU) == manifest
    assert {entry.name: (entry.nbytes, entry.checksum) for entry in manifest.files} == {
        name: (len(data), None) for name, data in FILES.items()
    }
    with pytest.raises(DataError, match="no replica of du-2"):
        store.read_manifest("du-2")
    assert store.is_visible()
    assert store.local_path(DU) == directory
    assert store.local_path(DU, "sub/b c") == directory / "sub/b c"
    assert store.url_for(DU, "sub/b c") == f"file://{directory}/sub/b c"
    assert content(store, DU, "a") == b"abc"
    assert verify(store, manifest) == []
    link_files(manifest, directory, tmp_path / "links")
    assert read_files(tmp_path / "links") == FILES
    assert download(store, manifest, tmp_path / "down") == manifest.nbytes
    assert read_files(tmp_path / "down") == FILES
    # A replica has checksums, whether or not the registration did.
    target = Store(tmp_path / "store").open()
    assert all(entry.checksum for entry in copy_unit(store, target, manifest).files)
    assert {name: content(target, DU, name) for name in FILES} == FILES


def test_it_travels_and_is_seen_where_the_files_are(directory: Path) -> None:
    store: Registered = pickle.loads(pickle.dumps(Registered.of(DU, expand_sources([f"{directory}/"]))))
    assert store.is_visible()
    # Another machine may have a file of the same name.
    write_files(directory.rename(directory.with_name("moved")).with_name("mine"), FILES)
    assert not store.is_visible()
    assert store.local_path(DU) is None
    with pytest.raises(StoreError, match="are not visible here, or were changed"):
        store.unit(DU)


def test_checksums_when_asked_for(directory: Path) -> None:
    moved: list[int] = []
    store = Registered.of(DU, expand_sources([f"{directory}/"]), checksums=True, on_bytes=moved.append)
    assert all(entry.checksum for entry in store.manifest.files)
    assert sum(moved) == store.manifest.nbytes
    (directory / "sub" / "b c").write_bytes(b"y" * 100_000)
    assert [problem.name for problem in verify(store, store.manifest)] == ["sub/b c"]


def test_files_here_and_there(directory: Path, tmp_path: Path) -> None:
    write_files(tmp_path / "other", {"c": b"c"})
    store = Registered.of(DU, expand_sources([directory / "a", tmp_path / "other" / "c"]))
    assert store.local_path(DU) is None
    assert store.local_path(DU, "c") == tmp_path / "other" / "c"
    assert store.url == f"file://{tmp_path}"
    assert download(store, store.manifest, tmp_path / "down") == 4


def test_what_has_changed_is_refused(directory: Path, tmp_path: Path) -> None:
    store = Registered.of(DU, expand_sources([f"{directory}/"]))
    (directory / "sub/b c").write_bytes(b"shorter")
    assert store.local_path(DU, "sub/b c") is None
    with pytest.raises(ChecksumError, match="has 7 bytes, but had 100000 when it was registered; register it again"):
        store.open_file(DU, "sub/b c")
    with pytest.raises(ChecksumError, match="sub/b c"):
        download(store, store.manifest, tmp_path / "down")
    assert read_files(tmp_path / "down") == {}
    with pytest.raises(ChecksumError, match="its manifest says 100000"):
        link_files(store.manifest, directory, tmp_path / "links")
    (directory / "empty").unlink()
    assert [str(p).rpartition(str(directory))[2] for p in verify(store, store.manifest)] == [
        "/empty is not there",
        "/sub/b c has 7 bytes, but its manifest says 100000",
    ]


def test_nothing_is_ever_written_or_removed(directory: Path) -> None:
    store = Registered.of(DU, expand_sources([f"{directory}/"]))
    file = store.unit(DU).child("a")
    for action in (
        lambda: store.write_manifest(store.manifest),
        lambda: store.remove_files(DU, ["a"]),
        lambda: store.discard_files(DU, ["a"]),
        lambda: file.write([b"x"]),
        lambda: file.write_bytes(b"x"),
        file.remove,
        file.remove_tree,
        store.unit(DU).remove_tree,
    ):
        with pytest.raises(StoreError, match="registered where it lies"):
            action()
    with pytest.raises(DataError, match="can only be read"):
        store.open_file(DU, "a", "w")
    store.remove(DU)
    assert store.open() is store
    assert read_files(directory) == FILES
    with pytest.raises(ManifestError):
        store.url_for(DU, "../a")
    with pytest.raises(StoreError, match="no file 'x'"):
        store.url_for(DU, "x")
    with pytest.raises(DataError, match="no files to register"):
        Registered.of(DU, {})


def test_on_the_web(web: Web, tmp_path: Path) -> None:
    write_files(web.directory, FILES)
    store = Registered.of(DU, expand_sources([f"{web.url}/a", f"{web.url}/sub/b%20c"]))
    assert store.manifest.names == ("a", "b c")
    assert store.local_path(DU) is None
    assert verify(store, store.manifest) == []
    assert download(pickle.loads(pickle.dumps(store)), store.manifest, tmp_path / "down") == 100_003
    assert read_files(tmp_path / "down") == {"a": b"abc", "b c": FILES["sub/b c"]}


@pytest.mark.s3
def test_in_s3_with_secrets_unseen(s3: S3, tmp_path: Path) -> None:
    bucket = s3.bucket()
    place = Store(f"s3://{bucket}/store", s3.storage_options).open()
    put(place, DU, tmp_path / "one", FILES)
    sources = expand_sources([f"s3://{bucket}/store/{DU}/{name}" for name in ("a", "empty", "sub")], s3.storage_options)
    store = Registered.of(DU, sources)
    for shown in (repr(store), str(store), store.url, repr(store.root), repr(store.unit(DU).child("a")), repr(sources)):
        assert s3.secret not in shown
    assert store.url == f"s3://{bucket}/store/{DU}"
    assert verify(pickle.loads(pickle.dumps(store)), store.manifest) == []
    other = Store(f"s3://{bucket}/other", s3.storage_options).open()
    copy_unit(store, other, store.manifest)
    assert {name: content(other, DU, name) for name in FILES} == FILES


def test_through_sftp(sshd: Sshd, directory: Path) -> None:
    store = Registered.of(DU, expand_sources([f"{sshd.url(directory)}/"], sshd.storage_options))
    assert verify(store, store.manifest) == []
    assert {name: content(store, DU, name) for name in FILES} == FILES
