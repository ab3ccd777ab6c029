from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from dpilot.data import Store, expand_sources, upload
from dpilot.errors import DataError, DescriptionError, ManifestError, StoreError
from tests.data.conftest import ODD_NAMES, content, write_files
from tests.services import S3

FILES = {"a.csv": b"1", "b.csv": b"22", "c.txt": b"", "sub/a.csv": b"4444", "sub/deep/d": b"5", "other/a.csv": b"6"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_files(tmp_path / "data", FILES)


def test_files_and_their_sizes(data: Path) -> None:
    found = expand_sources([f"{data}/a.csv", f"file://{data}/b.csv", data / "c.txt"])
    assert {name: source.nbytes for name, source in found.items()} == {"a.csv": 1, "b.csv": 2, "c.txt": 0}


def test_relative_paths(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    assert list(expand_sources(["a.csv", "file://b.csv", "./sub"])) == ["a.csv", "b.csv", "sub/a.csv", "sub/deep/d"]


def test_directories(data: Path) -> None:
    assert list(expand_sources([f"{data}/sub"])) == ["sub/a.csv", "sub/deep/d"]
    assert list(expand_sources([f"{data}/sub/"])) == ["a.csv", "deep/d"]
    assert set(expand_sources([f"{data}/"])) == set(FILES)
    assert set(expand_sources([data])) == {f"data/{name}" for name in FILES}


def test_globs(data: Path) -> None:
    assert list(expand_sources([f"{data}/*.csv"])) == ["a.csv", "b.csv"]
    assert list(expand_sources([f"{data}/*/a.csv"])) == ["other/a.csv", "sub/a.csv"]
    assert list(expand_sources([f"file://{data}/**/d"])) == ["sub/deep/d"]
    assert list(expand_sources([f"{data}/s*/deep/[cd]"])) == ["sub/deep/d"]


def test_odd_names(tmp_path: Path) -> None:
    root = write_files(tmp_path, dict.fromkeys(ODD_NAMES, b"x"))
    assert set(expand_sources([f"{root}/"])) == set(ODD_NAMES)
    alone = expand_sources([root / name for name in ODD_NAMES])
    assert set(alone) == {name.rpartition("/")[2] for name in ODD_NAMES}


def test_a_name_with_magic_is_itself_where_it_exists(tmp_path: Path) -> None:
    write_files(tmp_path, {"[ab]": b"1", "a": b"2"})
    assert list(expand_sources([f"{tmp_path}/[ab]"])) == ["[ab]"]


def test_the_same_name_twice_is_refused(data: Path) -> None:
    with pytest.raises(DescriptionError, match=r"data/a\.csv and .*sub/a\.csv would both be 'a\.csv'") as caught:
        expand_sources([data / "a.csv", data / "sub" / "a.csv"])
    assert caught.value.field == "file_urls"
    write_files(data.parent / "x", {"sub": b""})
    with pytest.raises(ManifestError, match="is also the directory"):
        expand_sources([data / "sub", data.parent / "x" / "sub"])


def test_what_is_missing_is_named(data: Path) -> None:
    (data / "empty").mkdir()
    for missing, problem in [
        ("missing.txt", "No such file"),
        ("*.parquet", "no file matches"),
        ("empty", "holds no file"),
        ("a.csv/x", "Not a directory"),
    ]:
        with pytest.raises(DataError, match=problem) as caught:
            expand_sources([data / "a.csv", f"{data}/{missing}"])
        assert f"{data}/{missing}" in str(caught.value)


def test_one_string_is_no_list() -> None:
    with pytest.raises(DescriptionError, match="give a list"):
        expand_sources("/a/b")


def test_urls_are_checked_for_this_field() -> None:
    for url in ("gopher://x", "", "s3://k:s@bucket/x"):
        with pytest.raises(DescriptionError) as caught:
            expand_sources([url])
        assert caught.value.field == "file_urls"


def test_links_out_of_a_directory_are_refused(data: Path, tmp_path: Path) -> None:
    secret = write_files(tmp_path / "outside", {"secret": b"s"}) / "secret"
    (data / "inner").symlink_to("a.csv")
    assert "data/inner" in expand_sources([data])
    for target in (secret, secret.parent, data / "sub", tmp_path / "nowhere"):
        (data / "sub" / "link").symlink_to(target)
        with pytest.raises(DataError, match="'sub/link' in it is a link that leads out"):
            expand_sources([data])
        (data / "sub" / "link").unlink()
    # A link that is named itself is meant.
    (data / "named").symlink_to(secret)
    assert expand_sources([data / "named"])["named"].nbytes == 1


def test_special_files_are_refused_not_read(data: Path) -> None:
    os.mkfifo(data / "fifo")
    for url in (data / "fifo", data):
        with pytest.raises(DataError, match="fifo is not a regular file"):
            expand_sources([url])


@pytest.mark.s3
def test_sources_in_s3(s3: S3, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", s3.storage_options)
    bucket = s3.bucket()
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    for name, data in FILES.items():
        fs.pipe_file(f"{bucket}/data/{name}", data)
    assert list(expand_sources([f"s3://{bucket}/data/a.csv"])) == ["a.csv"]
    assert list(expand_sources([f"s3://{bucket}/data/sub"])) == ["sub/a.csv", "sub/deep/d"]
    assert list(expand_sources([f"s3://{bucket}/data/*.csv"])) == ["a.csv", "b.csv"]
    found = expand_sources([f"s3://{bucket}/data/"])
    assert {name: source.nbytes for name, source in found.items()} == {n: len(c) for n, c in FILES.items()}
    assert set(expand_sources([f"s3://{bucket}/"])) == {f"data/{name}" for name in FILES}
    with pytest.raises(DataError, match=f"s3://{bucket}/nothing"):
        expand_sources([f"s3://{bucket}/nothing"])
    upload(found, store, "du-1")
    assert {name: content(store, "du-1", name) for name in FILES} == FILES


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def web(data: Path) -> Iterator[str]:
    """A real web server, which knows no ranges."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(data))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_sources_on_the_web(web: str, data: Path, tmp_path: Path) -> None:
    big = os.urandom(20_000_000)
    (data / "b i g").write_bytes(big)
    store = Store(tmp_path / "store").open()
    upload(expand_sources([f"{web}/a.csv?token=SECRET", f"{web}/b%20i%20g", f"{web}/c.txt"]), store, "du-1")
    assert [content(store, "du-1", name) for name in ("a.csv", "b i g", "c.txt")] == [b"1", big, b""]
    with pytest.raises(StoreError, match=r"cannot read http://.*/missing\?\*\*\*: there is no such file") as caught:
        expand_sources([f"{web}/missing?token=SECRET"])
    assert "SECRET" not in str(caught.value)
