from __future__ import annotations

import json
import pickle
import shutil
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from dpilot.data import FileEntry, Manifest, Store, upload
from dpilot.data.location import Location
from dpilot.errors import ChecksumError, DataError, ManifestError, StoreError, StoreFullError
from tests.data.conftest import MakeStore, content, left, plant, put, sources
from tests.services import S3


def test_opening_marks_a_store_once(store: Store) -> None:
    assert json.loads(store.root.child(".dpilot-store.json").read_bytes() or b"") == store.marker
    again = Store(store.url, store.root.options).open()
    assert again.store_id == store.store_id
    assert Store(store.url, store.root.options, store_id=store.store_id).open().marker == store.marker
    with pytest.raises(StoreError, match="holds another store"):
        Store(store.url, store.root.options, store_id="0" * 32).open()


def test_opening_at_once_agrees_on_one_id(make_store: MakeStore) -> None:
    template = make_store()
    url, options = f"{template.url}/new", template.root.options
    stores = [Store(url, options) for _ in range(6)]
    start = threading.Barrier(len(stores))

    def open_at_once(store: Store) -> None:
        start.wait()
        store.open()

    threads = [threading.Thread(target=open_at_once, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({store.store_id for store in stores}) == 1
    assert Store(url, options).open().store_id == stores[0].store_id


@pytest.mark.parametrize(
    "marker", [b"", b"{", b"[]", b"null", b'{"store": "x", "version": 1}', b'{"store": 3, "version": 1}', b"\xff"]
)
def test_a_marker_that_is_none_is_refused(tmp_path: Path, marker: bytes) -> None:
    (tmp_path / ".dpilot-store.json").write_bytes(marker)
    with pytest.raises(StoreError, match="cannot read"):
        Store(tmp_path).open()


def test_a_store_reached_another_way_is_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path / "one", datacenter="eu", machine="m", nbytes_limit=99).open()
    put(store, "du-1", tmp_path / "source", {"a": b"abc"})
    # As fsspec sees it: with no path of this machine.
    root = Location("file", "elsewhere://one", str(tmp_path / "one"))
    other = store.through(root)
    assert (other.store_id, other.datacenter, other.machine, other.nbytes_limit) == (store.store_id, "eu", "m", 99)
    assert (other.url, other.url_for("du-1", "a")) == ("elsewhere://one", "elsewhere://one/du-1/a")
    assert (other.list_units(), other.read_manifest("du-1")) == (["du-1"], store.read_manifest("du-1"))
    assert content(other, "du-1", "a") == b"abc"
    assert other.local_path("du-1", "a") is None
    put(other, "du-2", tmp_path / "source", {"b": b"b"})
    assert store.list_units() == ["du-1", "du-2"]
    assert store.url == f"file://{tmp_path}/one"
    again = pickle.loads(pickle.dumps(other))
    assert (again.root, again.store_id) == (root, store.store_id)


def test_a_store_must_be_opened_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.local_path("du-1", "a") is None
    with pytest.raises(StoreError, match="call open"):
        store.list_units()


def test_manifests(store: Store) -> None:
    assert store.list_units() == []
    assert store.find_manifest("du-1") is None
    with pytest.raises(DataError, match="no replica of du-1"):
        store.read_manifest("du-1")
    plant(store, "du-9", "file", b"of a transfer that died before its manifest")
    manifest = Manifest("du-1", (FileEntry("a b/c", 3),), time.time())
    plant(store, "du-1", "a b/c", b"abc")
    store.write_manifest(manifest)
    store.write_manifest(manifest)  # replaces
    assert store.read_manifest("du-1") == manifest
    assert store.list_units() == ["du-1"]
    assert store.nbytes_used() == 3


def test_a_manifest_at_another_units_place_is_refused(store: Store) -> None:
    plant(store, "du-2", ".dpilot-manifest.json", Manifest("du-1", (), 0.0).to_json().encode())
    with pytest.raises(ManifestError, match="is the manifest of du-1, not of du-2"):
        store.read_manifest("du-2")
    plant(store, "du-3", ".dpilot-manifest.json", b'{"version": 1}')
    with pytest.raises(ManifestError, match=r"du-3/\.dpilot-manifest\.json: .* lacks"):
        store.read_manifest("du-3")


@pytest.mark.parametrize("du", ["", "..", "a/b", ".dpilot-store.json"])
def test_ids_that_are_no_directory_are_refused(tmp_path: Path, du: str) -> None:
    store = Store(tmp_path).open()
    actions: list[Any] = [store.read_manifest, store.remove, store.url_for, store.local_path, store.unit]
    for action in actions:
        with pytest.raises(ManifestError, match="data unit id"):
            action(du)


def test_names_that_escape_are_refused(store: Store) -> None:
    actions: list[Any] = [store.url_for, store.local_path, store.open_file]
    for action in actions:
        with pytest.raises(ManifestError, match="would escape"):
            action("du-1", "../../x")


def test_open_file(store: Store, tmp_path: Path) -> None:
    put(store, "du-1", tmp_path / "in", {"sub/a b.txt": "ä\nb".encode(), "empty": b""})
    with store.open_file("du-1", "sub/a b.txt") as file:
        assert file.read() == "ä\nb".encode()
    with store.open_file("du-1", "sub/a b.txt", "r") as file:
        assert file.readlines() == ["ä\n", "b"]
    with store.open_file("du-1", "empty") as file:
        assert file.read() == b""
    with pytest.raises(StoreError, match=r"cannot read .*du-1/missing: there is no such file"):
        store.open_file("du-1", "missing")
    for mode in ("wb", "w", "a", "r+b"):
        with pytest.raises(DataError, match="can only be read"):
            store.open_file("du-1", "empty", mode)


def test_remove(store: Store, tmp_path: Path) -> None:
    files = {"a": b"1", "sub/*": b"2", "sub/b": b"3"}
    put(store, "du-1", tmp_path / "in", files)
    put(store, "du-10", tmp_path / "in", files)
    store.remove("du-1")
    store.remove("du-1")  # nothing to do
    assert store.list_units() == ["du-10"]
    assert left(store) == {f"du-10/{name}" for name in [*files, ".dpilot-manifest.json"]}


def test_remove_files_takes_names_as_they_are(store: Store, tmp_path: Path) -> None:
    put(store, "du-1", tmp_path / "in", {"*": b"1", "sub/b": b"22", "c": b"333"})
    rest = store.remove_files("du-1", ["*", "sub/b"])
    assert rest.names == ("c",)
    assert store.read_manifest("du-1") == rest
    assert left(store) == {"du-1/c", "du-1/.dpilot-manifest.json"}
    with pytest.raises(ManifestError, match="has no file 'x'"):
        store.remove_files("du-1", ["c", "x"])
    assert store.read_manifest("du-1") == rest


def test_local_files_are_visible_by_their_marker(tmp_path: Path) -> None:
    """The same path on another machine is another store: two directories, swapped under one path, stand for that."""
    store = Store(tmp_path / "store").open()
    put(store, "du-1", tmp_path / "in", {"a": b"1"})
    path = store.local_path("du-1", "a")
    assert path == tmp_path / "store" / "du-1" / "a"
    assert store.local_path("du-1") == tmp_path / "store" / "du-1"
    assert path is not None
    assert stat.S_IMODE(path.stat().st_mode) & 0o222 == 0
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    Store(tmp_path / "store").open()
    assert store.local_path("du-1", "a") is None
    for action in (store.list_units, lambda: store.open_file("du-1", "a"), lambda: store.remove("du-1")):
        with pytest.raises(StoreError, match="not visible here"):
            action()
    shutil.rmtree(tmp_path / "store")
    assert not store.is_visible()
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    assert store.local_path("du-1", "a") == path


def test_only_local_stores_have_local_paths(store: Store) -> None:
    assert (store.local_path("du-1", "a") is not None) == (store.root.protocol == "file")


def test_the_limit_is_kept(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(nbytes_limit=10)
    put(store, "du-1", tmp_path / "1", {"a": b"123456"})
    with pytest.raises(StoreFullError, match="4 of its 10 bytes left, and 5 are needed"):
        put(store, "du-2", tmp_path / "2", {"a": b"12345"})
    put(store, "du-3", tmp_path / "3", {"a": b"1234"})
    assert store.list_units() == ["du-1", "du-3"]
    with pytest.raises(StoreFullError, match="0 of its 10 bytes"):
        upload(sources(tmp_path / "1", {"b": b"1"}), store, "du-4", room=0)


def test_sizes_are_verified(store: Store, tmp_path: Path) -> None:
    manifest = put(store, "du-1", tmp_path / "in", {"a": b"123", "b": b""})
    store.verify_sizes(manifest)
    plant(store, "du-1", "a", b"12")
    with pytest.raises(ChecksumError, match=r"'a' in .*du-1 has 2 bytes, but should have 3"):
        store.verify_sizes(manifest)
    store.root.child("du-1").child("a").remove()
    with pytest.raises(ChecksumError, match="is not there"):
        store.verify_sizes(manifest)


NO_RETRIES = {"config_kwargs": {"retries": {"max_attempts": 0}}}


@pytest.mark.s3
@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"secret": "wrong-SECRETKEY"}, "signature"),
        ({"key": "unknown-SECRETKEY"}, "access key"),
        ({"key": None, "secret": None, "anon": True}, "Denied"),
        ({"endpoint_url": "http://127.0.0.1:1", **NO_RETRIES}, "connect"),
        ({"not_an_option": "SECRETKEY"}, "not_an_option"),
    ],
    ids=["secret", "key", "anonymous", "endpoint", "option"],
)
def test_s3_errors_name_store_and_cause_only(s3: S3, options: dict[str, Any], cause: str) -> None:
    bucket = s3.bucket()
    with pytest.raises(StoreError, match=cause) as caught:
        Store(f"s3://{bucket}/x", s3.storage_options | options).open()
    assert f"s3://{bucket}/x" in str(caught.value)
    assert "SECRETKEY" not in str(caught.value)
    assert s3.secret not in str(caught.value)


@pytest.mark.s3
def test_a_bucket_is_not_made(s3: S3) -> None:
    for _ in range(2):
        with pytest.raises(StoreError, match=r"cannot open s3://no-such-bucket/x: there is no .*bucket"):
            Store("s3://no-such-bucket/x", s3.storage_options).open()
