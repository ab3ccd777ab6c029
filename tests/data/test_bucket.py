"""Buckets by obstore: when it is used, that it moves the right bytes, and what is left when it fails."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dpilot.data import Store, bucket, download, expand_sources, upload
from dpilot.data.s3 import S3Location
from dpilot.data.signed import SignedObject
from dpilot.errors import StoreError, TransferStoppedError
from tests.helpers import LONG_S, eventually
from tests.services import S3

pytestmark = pytest.mark.s3

LARGE = random.Random(1).randbytes(40 * 1024 * 1024 + 5)


def place(s3: S3, **options: Any) -> S3Location:
    """A new place, reached with these further options."""
    root = Store(f"s3://{s3.bucket()}/some prefix", s3.storage_options | options).root
    assert isinstance(root, S3Location)
    return root


def pieces(data: bytes) -> Iterator[bytes]:
    yield from (data[start : start + 300_000] for start in range(0, len(data), 300_000))


def uploads(location: S3Location) -> list[Any]:
    """Uploads under way in the bucket."""
    found = location.fs.call_s3("list_multipart_uploads", Bucket=location.path.partition("/")[0])
    return list(found.get("Uploads") or ())


@pytest.mark.parametrize("near_s", [0, math.inf])
@pytest.mark.parametrize("fast", [0, math.inf])
@pytest.mark.parametrize("size", [0, 1, 1000, 39_999, 40_000, 70_001, 100_000, 100_001, 250_000, 1_234_567])
def test_all_sizes_arrive(s3: S3, monkeypatch: pytest.MonkeyPatch, size: int, fast: float, near_s: float) -> None:
    """Whether a connection seems as fast as can be (0), or not (inf), so that parts are fetched ahead.

    Whether a server seems near (inf), or not (0), so that several connections bring what is no part.
    """
    sizes = {"_PART": 100_000, "_LONG_PART": 300_000, "_PIECE": 30_000, "_SHARE": 20_000}
    for name, value in {**sizes, "_FAST": fast, "_NEAR_S": near_s}.items():
        monkeypatch.setattr(bucket, name, value)
    target = place(s3).child("a b")
    data = LARGE[:size]
    target.fs.pipe_file(target.path, data)
    for thought in (size, None, size + 7, max(size - 7, 1)):
        assert b"".join(map(bytes, target.read(thought))) == data
    assert bucket._ahead._value == bucket._AHEAD_OF_ALL
    eventually(lambda: bucket._shared._value == bucket._SHARES_OF_ALL, "all shares have ended")


def test_a_reader_that_stops_early_gives_back_its_parts(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    target = place(s3).child("a")
    target.write(pieces(LARGE), len(LARGE))
    for name, value in {"_PART": 1024 * 1024, "_FAST": math.inf}.items():
        monkeypatch.setattr(bucket, name, value)
    reading = target.read(len(LARGE))
    for _ in range(20):
        next(reading)
    assert bucket._ahead._value < bucket._AHEAD_OF_ALL
    reading.close()
    assert bucket._ahead._value == bucket._AHEAD_OF_ALL


def test_several_connections_bring_an_object_of_middling_size(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_NEAR_S", 0)
    target = place(s3).child("a")
    nbytes = 3 * bucket._SHARE + 1
    target.write([LARGE[:nbytes]], nbytes)
    found, key = target._bucket()
    assert found is not None
    asked: list[range] = []
    bring = bucket.Bucket._share

    def noted(self: bucket.Bucket, key: str, share: range) -> tuple[int, list[Any]]:
        asked.append(share)
        return bring(self, key, share)

    monkeypatch.setattr(bucket.Bucket, "_share", noted)
    assert b"".join(map(bytes, found.read(key, nbytes))) == LARGE[:nbytes]
    third = nbytes // 3
    assert sorted(asked, key=lambda share: share.start) == [
        range(third),
        range(third, 2 * third),
        range(2 * third, nbytes),
    ]
    # Not from a server that is near, nor where other files have taken the connections.
    asked.clear()
    found._answers_s = 0
    assert b"".join(map(bytes, found.read(key, nbytes))) == LARGE[:nbytes]
    assert asked == []
    found._answers_s = 1
    for _ in range(bucket._SHARES_OF_ALL):
        assert bucket._shared.acquire(blocking=False)
    try:
        assert b"".join(map(bytes, found.read(key, nbytes))) == LARGE[:nbytes]
    finally:
        for _ in range(bucket._SHARES_OF_ALL):
            bucket._shared.release()
    assert asked == []


class Relay:
    """Passes connections on to a server; while `flows` is not set, holds back each 64 KiB of answers for `hold_s`."""

    def __init__(self, port: int) -> None:
        self.flows = threading.Event()
        self.flows.set()
        self.hold_s: float | None = None  # for ever
        self.held = threading.Semaphore(0)  # one for each answer that is held back
        self._target = "127.0.0.1", port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += near, far
                for source, target in (near, far), (far, near):
                    threading.Thread(target=self._pass_on, args=(source, target, source is far), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if answers and not self.flows.is_set():
                    self.held.release()
                    self.flows.wait(self.hold_s)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.flows.set()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture
def relay(s3: S3) -> Iterator[Relay]:
    relay = Relay(urlsplit(s3.storage_options["endpoint_url"]).port or 80)
    yield relay
    relay.close()


@pytest.mark.parametrize("n_shares", [4, 1], ids=["shares", "parts"])
def test_a_transfer_can_be_stopped_while_hardly_anything_comes(
    s3: S3, relay: Relay, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, n_shares: int
) -> None:
    """Nothing of what several connections bring, or so slowly that a part of a large object takes a minute."""
    monkeypatch.setattr(bucket, "_NEAR_S", 0 if n_shares > 1 else math.inf)
    monkeypatch.setattr(bucket, "_FAST", math.inf)
    nbytes = n_shares * bucket._SHARE if n_shares > 1 else len(LARGE)
    (tmp_path / "a").write_bytes(LARGE[:nbytes])
    options = {**s3.storage_options, "endpoint_url": f"http://127.0.0.1:{relay.port}"}
    store = Store(f"s3://{s3.bucket()}", options).open()
    manifest = upload(expand_sources([str(tmp_path / "a")]), store, "du-1", producer="test")
    stop, ended = threading.Event(), list[BaseException]()

    moved = itertools.count(0)

    def hold(_: int) -> None:
        if n_shares == 1 and next(moved) * bucket._PIECE > bucket._PART:  # so parts are brought ahead
            relay.flows.clear()

    def bring() -> None:
        try:
            download(store, manifest, tmp_path / "to", on_bytes=hold, stop=stop)
        except BaseException as error:
            ended.append(error)

    if n_shares > 1:
        relay.flows.clear()
    else:
        relay.hold_s = 0.2
    thread = threading.Thread(target=bring)
    thread.start()
    assert relay.held.acquire(timeout=LONG_S)
    stop.set()
    thread.join(LONG_S)
    assert not thread.is_alive(), "it goes on waiting for what does not come"
    assert [type(error) for error in ended] == [TransferStoppedError]
    assert list((tmp_path / "to").rglob("*")) == []
    assert not relay.flows.is_set()


@pytest.mark.parametrize("quick_s", [0.0, math.inf])
def test_connections_are_as_many_as_the_way_makes_use_of(quick_s: float) -> None:
    """A second object takes those of the first, one after the other, unless what it brings is quick."""
    lanes, under_way, counts, order = bucket._Lanes(quick_s), set[int](), list[int](), list[int]()

    async def bring(number: int) -> None:
        under_way.add(number)
        counts.append(len(under_way))
        order.append(number)
        await asyncio.sleep(0.01)  # others begin meanwhile, if they may
        under_way.remove(number)

    for coming in lanes.submit([partial(bring, number) for number in range(20 * bucket._SHARES)]):
        coming.result()
    assert order == sorted(order)
    if quick_s:
        assert bucket._SHARES < max(counts) <= bucket._SHARES_OF_ALL
    else:
        assert max(counts) == bucket._SHARES


def test_of_two_objects_at_once_one_comes_first() -> None:
    """Were their shares mixed, the first one would come when both have."""
    lanes, order = bucket._Lanes(0.0), list[int]()
    ready = threading.Barrier(4)

    async def bring(number: int) -> None:
        order.append(number)
        await asyncio.sleep(0.001)

    def read(number: int) -> None:
        ready.wait(LONG_S)
        for coming in lanes.submit([partial(bring, number)] * 200):
            coming.result()

    threads = [threading.Thread(target=read, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert order == sorted(order, key=list(dict.fromkeys(order)).index)
    assert len(order) == 800


def test_a_connection_that_breaks_is_taken_up_where_it_broke(s3: S3) -> None:
    target = place(s3).child("a")
    target.write(pieces(LARGE), len(LARGE))
    found, key = target._bucket()
    assert found is not None
    asked = []

    def sign() -> str:
        asked.append(found._sign(key))
        return asked[-1]

    reader = SignedObject(sign, target.fs.info(target.path)["ETag"])
    with closing(reader):
        got = bytearray()
        for piece in reader.stream(range(5, len(LARGE))):
            got += piece
            if len(asked) < 3 and len(got) > len(asked) * 1_000_000:
                assert reader._connection is not None
                with suppress(OSError):  # it is shut already, and gives what had come before
                    reader._connection.sock.shutdown(socket.SHUT_RDWR)
        assert got == LARGE[5:]
        assert len(asked) == 3
        # Of an object that is another one by now, there is no further piece.
        target.write([b"other"], 5)
        with pytest.raises(OSError, match="the server answered 4"):
            reader.stream(range(0, 5))


def test_large_objects_are_read_over_plain_connections_where_that_is_possible(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "_FAST", 0)
    target = place(s3).child("a b+c#?=%41 ü")
    target.write(pieces(LARGE), len(LARGE))
    read = []
    stream = SignedObject.stream

    def counted(self: SignedObject, part: range) -> Iterator[memoryview]:
        found = stream(self, part)
        read.append(part)
        return found

    monkeypatch.setattr(SignedObject, "stream", counted)
    assert b"".join(map(bytes, target.read(None))) == LARGE
    assert read == [range(bucket._PART, len(LARGE))]
    # By obstore, where it is not.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    reader = SignedObject(lambda: f"{s3.endpoint_url}/a", None)
    monkeypatch.setattr("dpilot.data.signed.proxy_bypass", lambda host: False)
    with pytest.raises(OSError, match="a proxy is between"):
        reader.stream(range(0, 5))


def test_it_is_used_where_all_options_can_be_told(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    name = s3.bucket()
    rest = {"endpoint_url": s3.endpoint_url}
    known = {"key": s3.key, "secret": s3.secret}

    def used(**options: Any) -> bool:
        root = Store(f"s3://{name}", options).root
        assert isinstance(root, S3Location)
        by_obstore = root.child("a")._bucket()[0] is not None
        for target in (root.child("a"), root.child("new\nline")):
            target.write([b"content"])
            assert b"".join(map(bytes, target.read(None))) == b"content"
        assert root.child("new\nline")._bucket()[0] is None
        return by_obstore

    assert used(**rest, **known)
    assert used(**known, client_kwargs={"endpoint_url": s3.endpoint_url, "region_name": "us-east-1"})
    assert used(**rest, **known, config_kwargs={"connect_timeout": 9}) is False
    assert used(**rest, **known, client_kwargs={"verify": False}) is False
    # Credentials that are found in the environment are those of s3fs, whatever else is there.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret)
    assert used(**rest)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of another key")
    assert used(**rest, **known)
    # In a process that was forked from one which has used it, it would wait for ever.
    monkeypatch.setattr(bucket, "_pid", [1])
    assert used(**rest, **known) is False


@pytest.mark.parametrize(
    ("waits", "soonest", "asked"), [([0.05, 0.001, 0.04], 0.001, 2), ([0.05, 0.02, 0.03, 0.001], 0.02, 3)]
)
def test_how_near_a_server_is_tells_the_soonest_of_three_answers(
    monkeypatch: pytest.MonkeyPatch, waits: list[float], soonest: float, asked: int
) -> None:
    clock = [0.0]

    def ask() -> None:
        clock.append(clock[-1] + waits[len(clock) - 1])

    monkeypatch.setattr(time, "perf_counter", lambda: clock[-1])
    answers_s = bucket._answers_s(ask)
    monkeypatch.undo()
    assert answers_s == pytest.approx(soonest)
    assert len(clock) - 1 == asked, "once it is known to be near, it is not asked again"


def test_a_failed_upload_leaves_nothing(s3: S3) -> None:
    target = place(s3).child("a")

    def fail() -> Iterator[bytes]:
        yield from pieces(LARGE)
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        target.write(fail(), len(LARGE))
    assert not target.exists()
    assert uploads(target) == []


def test_what_a_killed_upload_left_is_thrown_away_by_the_next(s3: S3) -> None:
    target = place(s3).child("a")
    name, _, key = target.path.partition("/")
    for other in (key, f"{key}b"):
        target.fs.call_s3("create_multipart_upload", Bucket=name, Key=other)
    target.write(pieces(LARGE), len(LARGE))
    assert [upload["Key"] for upload in uploads(target)] == [f"{key}b"]
    assert b"".join(map(bytes, target.read(len(LARGE)))) == LARGE


def test_errors_are_sentences_without_credentials(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"access_key_id": s3.key, "secret_access_key": "a-wrong-secret", "token": None, "expires_at": None}
    monkeypatch.setattr(bucket._Credentials, "__call__", lambda _: wrong)
    target = place(s3).child("a")
    found, _ = target._bucket()
    assert found is not None
    with pytest.raises(StoreError, match="PermissionError: The request signature we calculated") as caught:
        target.write(pieces(LARGE), len(LARGE))
    assert str(caught.value).startswith(f"cannot write {target.url}: ")
    assert len(str(caught.value)) < 300
    assert caught.value.transient is False
    for text in (str(caught.value), repr(found), repr(found._store), repr(target)):
        assert "a-wrong-secret" not in text
    # A request that stands alone is tried again by s3fs, whose credentials are right.
    target.write([b"small"], 5)
    assert b"".join(map(bytes, target.read(5))) == b"small"
    with pytest.raises(StoreError, match="there is no such file, directory or bucket"):
        list(target.child("b").read(None))
