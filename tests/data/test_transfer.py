from __future__ import annotations

import errno
import os
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpilot.data import FileEntry, Manifest, Source, Store, copy_unit, download, expand_sources, upload, verify
from dpilot.data.moves import OnBytes
from dpilot.errors import ChecksumError, DataError, ManifestError, StagingError, StoreError
from tests.data.conftest import ODD_NAMES, MakeStore, content, left, plant, put, read_files, sources, write_files
from tests.services import S3

PART = 8 * 1024 * 1024  # what remote files are moved in: sizes around it take different ways
MANIFEST = ".dpilot-manifest.json"


def odd_files(store: Store) -> dict[str, bytes]:
    # SeaweedFS takes a backslash for a slash, as Amazon's S3 does not.
    names = [name for name in ODD_NAMES if store.root.protocol != "s3" or "\\" not in name]
    return {name: name.encode() * 3 for name in names}


def test_there_and_back(make_store: MakeStore, tmp_path: Path) -> None:
    one, two = make_store(), make_store()
    files = odd_files(one) | {"empty": b""}
    manifest = put(one, "du-1", tmp_path / "in", files)
    assert set(manifest.names) == set(files)
    assert manifest.nbytes == sum(map(len, files.values()))
    assert one.read_manifest("du-1") == manifest
    assert copy_unit(one, two, manifest) == manifest
    assert two.read_manifest("du-1") == manifest
    assert download(two, manifest, tmp_path / "out") == manifest.nbytes
    assert read_files(tmp_path / "out") == files
    one.remove("du-1")
    assert left(one) == set()


@pytest.mark.parametrize("nbytes", [PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 5])
def test_large_files(store: Store, tmp_path: Path, nbytes: int) -> None:
    files = {"large": os.urandom(nbytes)}
    manifest = put(store, "du-1", tmp_path / "in", files)
    assert manifest["large"].nbytes == nbytes
    download(store, manifest, tmp_path / "out")
    assert read_files(tmp_path / "out") == files


@given(st.dictionaries(st.sampled_from(ODD_NAMES), st.binary(max_size=100), max_size=5))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_files_come_back(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    directory = tmp_path_factory.mktemp("any")
    one, two = Store(directory / "one").open(), Store(directory / "two").open()
    (directory / "in").mkdir()
    manifest = upload(sources(directory / "in", files) if files else {}, one, "du-1")
    copy_unit(one, two, manifest)
    download(two, manifest, directory / "out")
    assert read_files(directory / "out") == files


def test_only_some_files(store: Store, tmp_path: Path) -> None:
    manifest = put(store, "du-1", tmp_path / "in", {"a": b"1", "b": b"22"})
    assert download(store, manifest, tmp_path / "out", names=["b"]) == 2
    assert read_files(tmp_path / "out") == {"b": b"22"}
    with pytest.raises(ManifestError, match="has no file 'c'"):
        download(store, manifest, tmp_path / "out", names=["c"])


def test_downloads_replace_and_are_writable(store: Store, tmp_path: Path) -> None:
    manifest = put(store, "du-1", tmp_path / "in", {"a": b"new"})
    out = write_files(tmp_path / "out", {"a": b"old"})
    download(store, manifest, out)
    assert read_files(out) == {"a": b"new"}
    assert (out / "a").stat().st_mode & 0o200


def test_further_files_and_taken_names(store: Store, tmp_path: Path) -> None:
    put(store, "du-1", tmp_path / "1", {"a": b"1", "d/x": b""})
    both = put(store, "du-1", tmp_path / "2", {"b": b"22"})
    assert both.names == ("a", "b", "d/x")
    assert store.read_manifest("du-1") == both
    for name in ("b", "d"):
        with pytest.raises(DataError, match=f"'{name}'"):
            put(store, "du-1", tmp_path / f"3{name}", {name: b"333", "c": b""})
    assert store.read_manifest("du-1") == both
    assert content(store, "du-1", "b") == b"22"
    assert left(store) == {f"du-1/{name}" for name in ("a", "b", "d/x", MANIFEST)}


def test_a_producer_replaces_its_own_files_only(store: Store, tmp_path: Path) -> None:
    put(store, "du-1", tmp_path / "0", {"input": b"0"})
    upload(sources(tmp_path / "1", {"a": b"1", "b": b"1"}), store, "du-1", producer="cu-1")
    upload(sources(tmp_path / "2", {"c": b"2"}), store, "du-1", producer="cu-2")
    again = upload(sources(tmp_path / "3", {"a": b"333"}), store, "du-1", producer="cu-1")
    assert {e.name: (e.nbytes, e.producer) for e in again.files} == {
        "a": (3, "cu-1"),
        "c": (1, "cu-2"),
        "input": (1, None),
    }
    assert content(store, "du-1", "a") == b"333"
    assert left(store) == {f"du-1/{name}" for name in ("a", "c", "input", MANIFEST)}


def test_a_copy_that_is_there_is_not_made_again(make_store: MakeStore, tmp_path: Path) -> None:
    one, two = make_store(), make_store()
    manifest = put(one, "du-1", tmp_path / "1", {"a": b"1", "b": b"2"})
    copy_unit(one, two, manifest)
    moved: list[int] = []
    copy_unit(one, two, manifest, on_bytes=moved.append)
    assert moved == []
    smaller = one.remove_files("du-1", ["a"])
    copy_unit(one, two, smaller, on_bytes=moved.append)
    assert two.read_manifest("du-1") == smaller
    assert left(two) == {"du-1/b", f"du-1/{MANIFEST}"}


def test_progress_adds_up(make_store: MakeStore, tmp_path: Path) -> None:
    one, two = make_store(), make_store()
    files = {str(n): bytes(n * 1000) for n in range(20)}
    total = sum(map(len, files.values()))
    inside = threading.Lock()
    moved = []

    def on_bytes(nbytes: int) -> None:
        assert inside.acquire(blocking=False), "called by two threads at once"
        moved.append(nbytes)
        inside.release()

    manifest = upload(sources(tmp_path / "in", files), one, "du-1", on_bytes=on_bytes)
    assert sum(moved) == total
    copy_unit(one, two, manifest, on_bytes=on_bytes)
    download(two, manifest, tmp_path / "out", on_bytes=on_bytes, max_transfers=1)
    assert sum(moved) == 3 * total


class CanceledError(Exception):
    pass


def cancel_after(total: int) -> OnBytes:
    moved = 0

    def on_bytes(nbytes: int) -> None:
        nonlocal moved
        moved += nbytes
        if moved > total:
            raise CanceledError

    return on_bytes


@pytest.mark.parametrize("parts", [[100] * 20, [3 * PART]], ids=["many", "large"])
def test_an_error_in_the_callback_cancels_and_nothing_is_left(
    make_store: MakeStore, tmp_path: Path, parts: list[int]
) -> None:
    one, two = make_store(), make_store()
    files = {f"sub/{n}": bytes(nbytes) for n, nbytes in enumerate(parts)}
    found = sources(tmp_path / "in", files)
    manifest = upload(found, one, "du-1")
    most = sum(parts) * 3 // 5  # of the large one enough for the first part to be uploaded
    with pytest.raises(CanceledError):
        upload(found, two, "du-1", on_bytes=cancel_after(most))
    with pytest.raises(CanceledError):
        copy_unit(one, two, manifest, on_bytes=cancel_after(most))
    with pytest.raises(CanceledError):
        download(one, manifest, tmp_path / "out", on_bytes=cancel_after(most))
    assert left(two) == set()
    assert list((tmp_path / "out").iterdir()) == []
    if two.root.protocol == "s3":  # nor parts of an upload, which cost money and are not listed
        bucket = two.root.path.partition("/")[0]
        assert two.root.fs.list_multipart_uploads(bucket) == []
    copy_unit(one, two, manifest)
    assert two.list_units() == ["du-1"]


def test_a_failed_copy_keeps_what_others_have_completed(store: Store, tmp_path: Path) -> None:
    put(store, "du-1", tmp_path / "1", {"a": b"1"})
    files = {str(n): bytes(1000) for n in range(10)}
    with pytest.raises(CanceledError):
        upload(sources(tmp_path / "2", files), store, "du-1", on_bytes=cancel_after(5000))
    assert left(store) == {"du-1/a", f"du-1/{MANIFEST}"}


@pytest.mark.parametrize(
    ("planted", "problem"),
    [
        (b"9" * 1000, "has checksum xxh3:[0-9a-f]{32}, but its manifest says xxh3:"),
        (b"1" * 999, "has 999 bytes, but its manifest says 1000"),
        (b"1" * 1001, "has more than 1000 bytes"),
        (b"", "has 0 bytes"),
    ],
)
def test_corruption_is_found_and_named(make_store: MakeStore, tmp_path: Path, planted: bytes, problem: str) -> None:
    one, two = make_store(), make_store()
    manifest = put(one, "du-1", tmp_path / "in", {"good": b"1", "bad": b"1" * 1000})
    plant(one, "du-1", "bad", planted)
    with pytest.raises(ChecksumError, match=problem) as caught:
        copy_unit(one, two, manifest, may_delegate=False)
    assert caught.value.name == "bad"
    for text in ("'bad'", one.url_for("du-1", "bad"), two.url_for("du-1", "bad")):
        assert text in str(caught.value)
    assert left(two) == set()
    with pytest.raises(ChecksumError, match=problem) as caught:
        download(one, manifest, tmp_path / "out")
    assert str(tmp_path / "out" / "bad") in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("make_store", ["sftp", pytest.param("s3", marks=pytest.mark.s3)], indirect=True)
def test_a_service_with_both_ends_copies_by_itself(make_store: MakeStore, tmp_path: Path) -> None:
    one, two = make_store(), make_store()
    files = {"good": b"1", "bad": b"1" * 1000, "large": bytes(PART + 1)} | odd_files(one)
    manifest = put(one, "du-1", tmp_path / "in", files)
    plant(one, "du-1", "bad", b"9" * 1000)
    moved: list[int] = []
    assert copy_unit(one, two, manifest, on_bytes=moved.append) == manifest
    assert sum(moved) == manifest.nbytes
    # Nobody looked at the bytes; whoever does, will find it.
    assert [problem.name for problem in verify(two, manifest)] == ["bad"]
    with pytest.raises(ChecksumError, match="'bad'"):
        download(two, manifest, tmp_path / "out")
    plant(one, "du-1", "bad", b"9" * 999)
    two.remove("du-1")
    with pytest.raises(ChecksumError, match="has 999 bytes"):
        copy_unit(one, two, manifest)
    assert left(two) == set()


def test_corruption_within_a_large_file_is_found(store: Store, tmp_path: Path) -> None:
    data = bytearray(2 * PART + 10)
    manifest = put(store, "du-1", tmp_path / "in", {"a": bytes(data)})
    data[PART + 5] ^= 1
    plant(store, "du-1", "a", bytes(data))
    with pytest.raises(ChecksumError, match="checksum"):
        download(store, manifest, tmp_path / "out")


@pytest.mark.parametrize("nbytes", [1, 300_000, PART, 2 * PART + 5])
@pytest.mark.parametrize("calls", [0, 1, None])
def test_files_of_one_machine_are_copied_by_the_kernel_as_far_as_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nbytes: int, calls: int | None
) -> None:
    """It goes on by hand from where the kernel gave up, after so many calls."""
    copy_file_range, counts = os.copy_file_range, []

    def limited(given: int, file: int, count: int) -> int:
        if len(counts) == calls:
            raise OSError(errno.EXDEV, "planted")
        counts.append(copy_file_range(given, file, min(count, 250_000) if calls else count))
        return counts[-1]

    monkeypatch.setattr(os, "copy_file_range", limited)
    files = {"a": os.urandom(nbytes)}
    one, two = Store(tmp_path / "one").open(), Store(tmp_path / "two").open()
    manifest = put(one, "du-1", tmp_path / "in", files)
    monkeypatch.setattr("dpilot.data.local._COPY", 250_000 if calls else PART)
    counts.clear()
    copy_unit(one, two, manifest)
    download(two, manifest, tmp_path / "out")
    assert read_files(tmp_path / "out") == files
    if calls is None:
        assert sum(counts) == 2 * nbytes
    two.remove("du-1")
    counts.clear()
    plant(one, "du-1", "a", bytes([files["a"][0] ^ 1]) + files["a"][1:])
    with pytest.raises(ChecksumError, match="checksum"):
        copy_unit(one, two, manifest)
    assert left(two) == set()


def test_without_checksum_the_size_counts(store: Store, tmp_path: Path) -> None:
    plant(store, "du-1", "a", b"abc")
    assert download(store, Manifest("du-1", (FileEntry("a", 3),), time.time()), tmp_path / "out") == 3
    with pytest.raises(ChecksumError, match="its manifest says 4"):
        download(store, Manifest("du-1", (FileEntry("a", 4),), time.time()), tmp_path / "out")


def test_a_file_that_is_gone_is_named(make_store: MakeStore, tmp_path: Path) -> None:
    one, two = make_store(), make_store()
    manifest = put(one, "du-1", tmp_path / "in", {"a": b"1", "b": b"2"})
    one.root.child("du-1").child("b").remove()
    with pytest.raises(StoreError, match=r"cannot read .*du-1/b: there is no such file"):
        copy_unit(one, two, manifest)
    assert left(two) == set()


def test_a_source_that_is_gone_is_named(store: Store, tmp_path: Path) -> None:
    found = sources(tmp_path / "in", {"a": b"1", "b": b"2"})
    (tmp_path / "in" / "b").unlink()
    with pytest.raises(StoreError, match=r"cannot read file://.*/in/b: there is no such file"):
        upload(found, store, "du-1")
    assert left(store) == set()


def test_a_store_on_another_machine_is_not_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    found = sources(tmp_path / "in", {"a": b"1"})
    (tmp_path / "store").rename(tmp_path / "moved")
    with pytest.raises(StoreError, match="not visible here"):
        upload(found, store, "du-1")
    assert not (tmp_path / "store").exists()


def test_links_in_the_target_do_not_lead_out(store: Store, tmp_path: Path) -> None:
    manifest = put(store, "du-1", tmp_path / "in", {"sub/a": b"1", "b": b"2"})
    outside = write_files(tmp_path / "outside", {"b": b"mine"})
    out = write_files(tmp_path / "out", {})
    out.mkdir()
    (out / "sub").symlink_to(outside)
    with pytest.raises(StagingError, match="leads out of"):
        download(store, manifest, out)
    (out / "sub").unlink()
    (out / "b").symlink_to(outside / "b")
    download(store, manifest, out)  # the link is replaced, not followed
    assert read_files(outside) == {"b": b"mine"}
    assert read_files(out) == {"sub/a": b"1", "b": b"2"}


def test_names_of_sources_are_checked(store: Store, tmp_path: Path) -> None:
    (source,) = sources(tmp_path / "in", {"a": b"1"}).values()
    for name in ("../a", "/a", MANIFEST):
        with pytest.raises(ManifestError):
            upload({name: source}, store, "du-1")
    assert left(store) == set()


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """A file far larger than any buffer: counted by what one thread holds at most, not by the process's size."""
    import tracemalloc

    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(200 * 1024 * 1024)
    store = Store(tmp_path / "store").open()
    found: dict[str, Source] = expand_sources([tmp_path / "sparse"])
    tracemalloc.start()
    try:
        download(store, upload(found, store, "du-1"), tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 1024 * 1024


@pytest.mark.s3
def test_between_kinds_of_stores(s3: S3, tmp_path: Path) -> None:
    files = {"a b/c": b"1" * 100, "empty": b"", "large": os.urandom(PART + 77)}
    chain = [
        Store(tmp_path / "disk").open(),
        Store(f"s3://{s3.bucket()}", s3.storage_options).open(),
        Store(f"memory://{tmp_path.name}").open(),
        Store(f"s3://{s3.bucket()}/x/y", s3.storage_options).open(),
        Store(tmp_path / "other disk").open(),
    ]
    manifest = put(chain[0], "du-1", tmp_path / "in", files)
    for source, target in pairwise(chain):
        assert copy_unit(source, target, manifest) == manifest
    download(chain[-1], manifest, tmp_path / "out")
    assert read_files(tmp_path / "out") == files
