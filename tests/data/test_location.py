from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest

from dpilot.data import Store
from dpilot.data.locate import locate
from dpilot.data.location import redacted
from dpilot.errors import DescriptionError, StoreError


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/x/y", "/x/y"),
        ("/x/y/", "/x/y"),
        ("/x/../y", "/y"),
        ("file:///x/y", "/x/y"),
        ("file:/x/y", "/x/y"),
        ("FILE:///x/y", "/x/y"),
        ("local:///x", "/x"),
        ("file://localhost/x", "/x"),
        ("ssh://localhost/x", "/x"),
        ("ssh:///x", "/x"),
        ("file:///with space%20", "/with space%20"),
        ("file:///a@b:c", "/a@b:c"),
        ("data", "{cwd}/data"),
        ("./data/x", "{cwd}/data/x"),
        ("file://data/x", "{cwd}/data/x"),
        ("file://data", "{cwd}/data"),
        (Path("data"), "{cwd}/data"),
        (Path("~data"), "{cwd}/~data"),
        ("~/data", "{home}/data"),
        ("a:b", "{cwd}/a:b"),
    ],
)
def test_local_paths(url: Any, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(url)
    expected = path.format(cwd=tmp_path, home=Path.home())
    assert store.root.local == Path(expected)
    assert store.url == f"file://{expected}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/prefix/", "s3://bucket/prefix"),
        ("S3://bucket/prefix", "S3://bucket/prefix"),
        ("memory://", "memory://"),
        ("memory://a/b", "memory://a/b"),
    ],
)
def test_other_urls(url: str, shown: str) -> None:
    assert Store(url).url == shown
    assert Store(url).url_for("du-1", "a/b").removeprefix(shown).lstrip("/") == "du-1/a/b"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (None, "neither a path nor a URL"),
        (3, "neither a path nor a URL"),
        ("", "neither a path nor a URL"),
        ("  ", "neither a path nor a URL"),
        ("/a\0b", "NUL"),
        ("://x", "no protocol"),
        ("s3:/bucket", "two slashes"),
        ("file://", "names no path"),
        ("file://localhost", "names no path"),
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("http:///x", "names no host"),
        ("s3://buc ket/x", "malformed"),
        ("http://host:port/x", "malformed"),
        ("http://[::1/x", "malformed"),
        ("simplecache::s3://bucket", "chain"),
        ("gopher://x", "unknown protocol 'gopher'"),
        ("redis://localhost", "unknown protocol 'redis'"),
    ],
)
def test_malformed_urls(url: Any, problem: str) -> None:
    with pytest.raises(DescriptionError, match=problem) as caught:
        Store(url)
    assert caught.value.field == "service_url"
    assert "service_url" in str(caught.value)


SECRETS = ("SECRETKEY", "pa55/word+x", "tok-3n")


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEYID:SECRETKEY@bucket/prefix",
        "s3://KEYID:pa55/word+x@bucket/prefix",
        "s3://SECRETKEY@bucket",
        "https://tok-3n@host/x",
        "https://user:SECRETKEY@host:80/x",
        "ftp://user:SECRETKEY@host",
        "s3://bucket/x?X-Amz-Security-Token=SECRETKEY",
    ],
)
def test_credentials_in_urls_are_refused_unseen(url: str) -> None:
    with pytest.raises(DescriptionError, match="storage_options") as caught:
        Store(url)
    told = f"{caught.value} {caught.value!r} {caught.value.__dict__}"
    assert not any(secret in told for secret in SECRETS), told


def test_what_is_no_credential_is_kept() -> None:
    for url in (
        "abfs://container@account.dfs.core.windows.net/x",
        "http://host:80/a@b",
        "http://h/x?y=1",
        "s3://bucket/a:b@c",
    ):
        assert redacted(url) == url


def test_storage_options_are_a_mapping() -> None:
    with pytest.raises(DescriptionError, match="storage_options is a list") as caught:
        Store("s3://bucket", ["key"])  # type: ignore[arg-type]
    assert caught.value.field == "storage_options"


def test_nothing_shows_storage_options() -> None:
    options = {
        "key": "SECRETKEY",
        "secret": "pa55/word+x",
        "client_kwargs": {"aws_session_token": ["tok-3n"]},
        "endpoint_url": "http://127.0.0.1:1",
    }
    store = Store("s3://bucket/prefix", options, datacenter="eu", store_id="0" * 32)
    cause = ValueError(f"bad options {options}, see http://u:pw@host/")
    with pytest.raises(StoreError) as caught, store.root.errors("read"):
        raise cause
    assert caught.value.__cause__ is None  # a traceback would show it
    assert caught.value.__suppress_context__
    again = pickle.loads(pickle.dumps(caught.value))
    shown = [
        repr(store),
        str(store),
        store.url,
        store.url_for("du-1", "a"),
        repr(store.root),
        repr(store.root.child("a")),
    ]
    for text in [*shown, str(store.marker), str(caught.value), repr(again), str(again.__dict__)]:
        assert not any(secret in text for secret in SECRETS), text
        assert "pw@" not in text
    assert "s3://bucket/prefix" in str(caught.value)
    assert "http://127.0.0.1:1" in str(caught.value)


def test_a_store_pickles_as_it_is_now_and_not_as_it_was_when_it_was_pickled_before(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", machine="m1")
    assert pickle.loads(pickle.dumps(store)).store_id is None
    store.open()
    assert pickle.loads(pickle.dumps(store)).store_id == store.store_id is not None
    store.machine = "m2"
    assert pickle.loads(pickle.dumps(store)).machine == "m2"
    moved = store.through(Store(tmp_path / "elsewhere").root)
    assert pickle.loads(pickle.dumps(moved)).url == moved.url != store.url == pickle.loads(pickle.dumps(store)).url


def test_a_store_pickles_with_what_it_needs() -> None:
    store = Store("s3://bucket/x", {"key": "k"}, store_id="0" * 32, datacenter="eu", machine="m", nbytes_limit=5)
    again = pickle.loads(pickle.dumps(store))
    assert (again.url, again.store_id, again.datacenter, again.machine, again.nbytes_limit) == (
        "s3://bucket/x",
        "0" * 32,
        "eu",
        "m",
        5,
    )
    assert again.root.options == {"key": "k"}


def test_s3_file_systems_share_a_session_but_not_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Store("s3://a", {"key": "k1", "secret": "s1"}), Store("s3://a", {"key": "k2", "secret": "s2"})
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(one.root.fs))
    thread.start()
    thread.join()
    assert found[0].session is one.root.fs.session is two.root.fs.session
    assert (one.root.fs.key, two.root.fs.key) == ("k1", "k2")
    assert one.root.fs.dircache.use_listings_cache is False
    # s3fs makes a session from options such as `profile`: ours would make it overlook them.
    assert "session" not in Store("s3://a", {"profile": "p"}).root.fs.storage_options
    monkeypatch.setitem(fsspec.config.conf, "s3", {"profile": "p"})
    assert "session" not in one.root.fs.storage_options


def test_errors_name_the_place_and_the_cause(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=f"cannot open file://{tmp_path}/file/x: Not a directory"):
        Store(tmp_path / "file" / "x").open()
    with pytest.raises(StoreError, match="there is no such file"):
        next(iter(locate(tmp_path / "missing", field="x").read(None)))


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    place = locate(tmp_path / "a", field="x")
    place.write_bytes(b"before")

    def pieces() -> Any:
        yield b"after"
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        place.write(pieces())
    assert place.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
