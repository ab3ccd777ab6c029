"""What every protocol must do, and how a store that cannot be used is refused."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dpilot.data import Store, copy_unit, download, expand_sources, upload, verify
from dpilot.data.locate import locate
from dpilot.errors import DataError, DescriptionError, StoreError
from tests.data.conftest import ODD_NAMES, MakeStore, content, left, plant, put, read_files
from tests.services import Sshd, Web, free_port, missing

DU, OTHER = "du-0123456789ab", "du-ba9876543210"


def test_the_life_of_a_store(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    # SeaweedFS takes a backslash for a slash, as Amazon's S3 does not.
    odd = [name for name in ODD_NAMES if "\\" not in name or store.root.protocol != "s3"]
    files = {"a": b"abc", "empty": b"", "sub/deep/b": bytes(range(256)) * 5000} | {name: name.encode() for name in odd}
    assert store.list_units() == []
    manifest = put(store, DU, tmp_path / "one", files)
    assert verify(store, manifest) == []

    # Somebody else opens it, knowing where it is and nothing more.
    again = pickle.loads(pickle.dumps(Store(store.url, store.root.options))).open()
    assert (again.store_id, again.list_units()) == (store.store_id, [DU])
    assert again.read_manifest(DU) == manifest
    assert again.nbytes_used() == sum(map(len, files.values()))
    assert {name: content(again, DU, name) for name in manifest} == files
    with again.open_file(DU, "sub/deep/b") as file:
        file.seek(1000)
        assert file.read(4) == bytes(range(232, 236))
    assert download(again, manifest, tmp_path / "down") == manifest.nbytes
    assert read_files(tmp_path / "down") == files

    # Further files, a copy in another store of the kind, and removal.
    more = upload(expand_sources([tmp_path / "one" / "a"]), again, OTHER)
    assert store.list_units() == [DU, OTHER]
    other = make_store()
    assert copy_unit(store, other, manifest) == manifest
    assert verify(other, manifest) == []
    assert other.remove_files(DU, ["a", "sub/deep/b"]).names == tuple(sorted(files.keys() - {"a", "sub/deep/b"}))
    assert verify(other, other.read_manifest(DU)) == []
    store.remove(DU)
    store.remove(DU)
    assert store.list_units() == [OTHER]
    assert store.read_manifest(OTHER) == more
    store.remove(OTHER)
    assert left(store) == set()


def test_damage_is_found_and_named(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    manifest = put(store, DU, tmp_path / "one", {"a": b"abc", "b": b"abc", "c": b"abc", "d": b"abc"})
    plant(store, DU, "a", b"abd")
    plant(store, DU, "b", b"ab")
    store.root.child(DU).child("c").remove()
    moved: list[int] = []
    found = verify(store, manifest, on_bytes=moved.append)
    assert [(problem.name, problem.url) for problem in found] == [(n, store.url_for(DU, n)) for n in "abc"]
    assert "has checksum xxh3:" in str(found[0])
    assert "has 2 bytes, but its manifest says 3" in str(found[1])
    assert "is not there" in str(found[2])
    assert sum(moved) == 6  # what is of the wrong size need not be read
    other = make_store()
    assert [p.problem for p in verify(other, manifest)] == ["is not there"] * 4


def test_a_manifest_that_would_fill_the_memory_is_not_read(tmp_path: Path, sshd: Sshd) -> None:
    local = Store(tmp_path / "store").open()
    put(local, DU, tmp_path / "one", {"a": b"abc"})
    path = tmp_path / "store" / DU / ".dpilot-manifest.json"
    path.chmod(0o644)
    os.truncate(path, 2**40)
    for store in (local, Store(sshd.url(tmp_path / "store"), sshd.storage_options).open()):
        with pytest.raises(StoreError, match=r"manifest.json: it has more than 268435456 bytes"):
            store.find_manifest(DU)


def test_small_files(make_store: MakeStore) -> None:
    place = make_store().root.child("x")
    assert place.read_bytes() is None
    for data in (b"", b"abc", b"ab"):
        place.write_bytes(data)
        assert place.read_bytes() == data
        assert (place.size(), place.exists()) == (len(data), True)
    before = place.version()
    assert place.version() == before
    place.write_bytes(b"abcdef")
    assert place.version() != before
    place.write_bytes(b"other", exclusive=True)
    assert place.read_bytes() == b"abcdef"
    place.remove()
    place.remove()
    for look in (place.version, place.size):
        with pytest.raises(StoreError, match="there is no such file"):
            look()


# ---------------------------------------------------------------------- leftovers


def test_a_store_is_cleaned_when_it_is_opened_again(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    put(store, OTHER, tmp_path / "one", {"a": b"abc", "sub/b": b"b"})
    plant(store, OTHER, "sub/.dpilot-tmp-1", b"half")
    plant(store, DU, "a", b"of a transfer that was killed")
    plant(store, DU, "sub/.dpilot-tmp-2", b"half")
    plant(store, "mine", "a", b"a file of the user's")
    store.root.child(".dpilot-tmp-3").write_bytes(b"")
    everything = left(store)
    Store(store.url, store.root.options).open()  # an hour has not passed
    assert left(store) == everything
    # Not 0: a server may count whole seconds, or have another clock.
    Store(store.url, store.root.options).open(leftover_age_s=-60)
    assert left(store) == {f"{OTHER}/{name}" for name in ("a", "sub/b", ".dpilot-manifest.json")} | {"mine/a"}
    assert store.list_units() == [OTHER]


def test_age_is_that_of_the_youngest_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    for name in ("a", "b"):
        plant(store, DU, name, b"abc")
    os.utime(tmp_path / "store" / DU / "a", (0, time.time() - 7200))
    Store(store.url).open()
    assert left(store) == {f"{DU}/a", f"{DU}/b"}
    os.utime(tmp_path / "store" / DU / "b", (0, time.time() - 3700))
    Store(store.url).open(leftover_age_s=3800)
    assert left(store) == {f"{DU}/a", f"{DU}/b"}
    Store(store.url).open()
    assert left(store) == set()


def test_what_a_killed_transfer_left_is_not_taken_over(make_store: MakeStore, tmp_path: Path) -> None:
    one, two = make_store(), make_store()
    for store in (one, two):
        plant(store, DU, "stray", b"abc")
        plant(store, DU, "a", b"something else")
    manifest = put(one, DU, tmp_path / "one", {"a": b"abc"})
    copy_unit(one, two, manifest)
    for store in (one, two):
        assert left(store) == {f"{DU}/a", f"{DU}/.dpilot-manifest.json"}
        assert content(store, DU, "a") == b"abc"


# ---------------------------------------------------------------------- web servers


def test_the_web_is_read_and_never_written(web: Web, make_store: MakeStore, tmp_path: Path) -> None:
    (web.directory / "a file.csv").write_bytes(b"x" * 100_000)
    place = locate(f"{web.url}/a%20file.csv", field="x")
    store = make_store()
    manifest = upload(expand_sources([f"{web.url}/a%20file.csv"]), store, DU)
    assert content(store, DU, "a file.csv") == (web.directory / "a file.csv").read_bytes()
    assert verify(store, manifest) == []
    with place.open() as file:
        assert file.read(10) == b"x" * 10
    with pytest.raises(DataError, match="there is no such file"):
        expand_sources([f"{web.url}/other"])
    for action in (
        Store(web.url).open,
        lambda: place.write([b"x"]),
        lambda: place.write_bytes(b"x"),
        place.remove,
        place.remove_tree,
    ):
        with pytest.raises(StoreError, match="files on web servers can only be read"):
            action()


# ---------------------------------------------------------------------- refused


@pytest.fixture
def silent_port() -> Any:
    """A port at which somebody takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"client_keys": []}, "Permission denied"),
        ({"username": "nobody-of-that-name"}, "Permission denied"),
        ({"known_hosts": None, "port": "closed"}, "refused|Connect call failed"),
        ({"known_hosts": ""}, "not trusted"),
        ({"client_keys": ["/no/such/key"]}, "no such file"),
    ],
)
def test_ssh_errors_name_store_and_cause(sshd: Sshd, tmp_path: Path, options: dict[str, Any], cause: str) -> None:
    options = sshd.storage_options | options
    if options["port"] == "closed":
        options["port"] = free_port()
    if options["known_hosts"] == "":
        (tmp_path / "known").touch()
        options["known_hosts"] = str(tmp_path / "known")
    with pytest.raises(StoreError, match=cause) as caught:
        Store(sshd.url(tmp_path / "store"), options).open()
    assert f"{sshd.url(tmp_path)}/store" in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("protocol", ["sftp", pytest.param("s3", marks=pytest.mark.s3)])
def test_a_server_that_says_nothing_is_given_up(silent_port: int, protocol: str) -> None:
    store = {
        "sftp": lambda: Store("sftp://127.0.0.1/x", {"port": silent_port, "known_hosts": None}),
        "s3": lambda: Store(
            "s3://bucket/x", {"key": "k", "secret": "s3cr3t", "endpoint_url": f"http://127.0.0.1:{silent_port}"}
        ),
    }[protocol]()
    with pytest.raises(StoreError, match=f"cannot open {store.url}: it did not answer within 1 s"):
        store.open(timeout_s=1)


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Whether it is a store already or not; root may write anywhere, so in a child that is somebody else."""
    if os.geteuid() != 0:
        missing("only root can be somebody else")
    Store(tmp_path / "old").open()
    (tmp_path / "new").mkdir()
    for path in [tmp_path, *tmp_path.parents]:
        path.chmod(path.stat().st_mode | 0o555)
    program = (
        "import os, sys\nfrom dpilot.data import Store\nfrom dpilot.errors import StoreError\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: Store(sys.argv[1]).open()\nexcept StoreError as error: print(error)"
    )
    for name in ("old", "new"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name)], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(f"cannot write file://{tmp_path}/{name}/.dpilot-")
        assert done.stdout.endswith(": Permission denied\n")


def test_ssh_on_this_machine_is_this_machine_unless_there_are_options(sshd: Sshd, tmp_path: Path) -> None:
    assert Store(f"ssh://localhost{tmp_path}").root.local == tmp_path
    store = Store(f"ssh://localhost{tmp_path}", sshd.storage_options | {"known_hosts": None})
    assert (store.root.local, store.url) == (None, f"ssh://localhost{tmp_path}")
    assert store.open().list_units() == []


def test_ssh_lost_and_found(sshd: Sshd, tmp_path: Path) -> None:
    """A connection that was lost is made anew."""
    store = Store(sshd.url(tmp_path / "store"), sshd.storage_options).open()
    manifest = put(store, DU, tmp_path / "one", {"a": b"abc"})
    store.root.fs.client.abort()
    assert verify(store, manifest) == []


def test_a_name_that_no_package_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr("fsspec.get_filesystem_class", lambda protocol: MemoryFileSystem)
    with pytest.raises(DescriptionError, match=r"dpilot\[ssh\]"):
        Store("sftp://host/x")
