"""A bucket of S3, reached by obstore: several requests at once, and no Python between a socket and memory."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import fsspec
import obstore
from botocore import UNSIGNED  # type: ignore[import-untyped]
from fsspec.asyn import get_loop, sync
from obstore.exceptions import BaseError
from obstore.store import S3Store

from dpilot.data.signed import SignedObject

__all__ = ["Bucket", "connect"]

# Large objects are moved in parts of this size, several at once.
_PART = 16 * 1024 * 1024
_LONG_PART = 16 * _PART  # which are not kept, so they may be longer
_FAST = 400e6  # bytes a second of one connection
_PIECE = 256 * 1024  # small enough to stay in the processor's cache while it is hashed and written
_WHOLE = 4 * _PIECE  # as one piece: each takes a change of threads
_MAX_PARTS = 9_000  # S3 takes 10,000
# Of an object of middling size that comes over a long way, each of several connections brings a share. Flows that begin
# beside others on a full way may be starved for seconds: as measured all of four often are, all of eight hardly ever.
# So the next object takes the same connections, which know how much the way carries, as those before it let go of them.
_SHARE = 512 * 1024  # at least
_SHARES = 8
_NEAR_S = 0.01  # a server that answers sooner is so near that one connection is fast
_MOST_ASKED = 3  # times, how soon it answers

_VALID_S = 3600  # of a signed URL, with which a part is asked for at once

# Further parts of one object, and of all objects together, that may be on their way or in memory.
_AHEAD = 3
_AHEAD_OF_ALL = 12
_ahead = threading.BoundedSemaphore(_AHEAD_OF_ALL)
_SHARES_OF_ALL = 28
_shared = threading.BoundedSemaphore(_SHARES_OF_ALL)  # shares beyond the first of their objects
_LOOK_S = 0.25  # how long a reader is kept waiting at the most before it may see to other things
_QUICK = 4.0  # how many times as long as the server takes to answer a share takes while the way is not full

# What we translate for obstore; with any other option, s3fs is used.
_OPTIONS = frozenset({"anon", "client_kwargs", "endpoint_url", "key", "profile", "secret", "token"})
_CLIENT_OPTIONS = frozenset({"endpoint_url", "region_name"})
_AWS = re.compile(r"https://s3(\.[a-z0-9-]+)?\.amazonaws\.com")
_RETRY: Any = {
    "max_retries": 2,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
    "retry_timeout": timedelta(seconds=60),
}


_T = TypeVar("_T")
#: What Python sees as bytes.
Buffer: TypeAlias = Any


class _Clock:
    """How fast pieces come, without the time that their reader takes."""

    def __init__(self) -> None:
        self._waited_s, self._nbytes = 0.0, 0

    @property
    def is_fast(self) -> bool:
        """Whether they come as fast as they could be taken: then further connections would only compete for cores."""
        return self._nbytes > _FAST * self._waited_s

    def timed(self, pieces: Iterable[Buffer]) -> Iterator[Buffer]:
        """The same pieces."""
        since = time.perf_counter()
        for piece in pieces:
            self._waited_s += time.perf_counter() - since
            self._nbytes += len(piece)
            yield piece
            since = time.perf_counter()


class _Lanes:
    """Connections over a long way. Who finds all of them taken waits for one, in turn.

    There is one more when who has waited for one is so quick then that the way cannot be full.
    """

    def __init__(self, quick_s: float) -> None:
        self._quick_s = quick_s
        self._free = asyncio.Semaphore(_SHARES)
        self._more = _SHARES_OF_ALL - _SHARES
        self._turn = threading.Lock()

    def submit(self, works: Iterable[Callable[[], Coroutine[Any, Any, _T]]]) -> list[Future[_T]]:
        """Have the shares of an object brought, as there are connections for them: all before those of another one."""
        with self._turn:
            return [asyncio.run_coroutine_threadsafe(self._carry(work), get_loop()) for work in works]

    async def _carry(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        waits = self._free.locked()
        async with self._free:
            began = time.perf_counter()
            try:
                return await work()
            finally:
                if waits and self._more and time.perf_counter() - began < self._quick_s:
                    self._more -= 1
                    self._free.release()


class Bucket:
    """One bucket. Several threads may use it; other processes, also forked ones, must not."""

    def __init__(
        self, store: S3Store, sign: Callable[[str], str], answers_s: float, ca_bundle: Path | None = None
    ) -> None:
        self._store = store
        self._answers_s = answers_s
        self._sign = sign
        self._ca_bundle = ca_bundle
        self._lanes = _Lanes(_QUICK * answers_s)

    def read(self, key: str, nbytes: int | None = None) -> Iterator[Buffer]:
        """The bytes of an object in pieces, with empty ones while none comes: who reads may have to stop meanwhile.

        Parameters
        ----------
        key : str
        nbytes : int, optional
            How many it is thought to have.

        Raises
        ------
        OSError
            One of Python's own, that says in a sentence what obstore says on a page.
        """
        with _errors():
            if self._answers_s > _NEAR_S and len(shares := _shares(nbytes or 0)) > 1:
                yield from self._at_once(key, shares)
                return
            empty = nbytes == 0  # of an empty object there is no range
            first = obstore.get(self._store, key, options={} if empty else {"range": (0, _PART)})
            size = first.meta["size"]
            if empty or size <= _PART:
                if size <= _WHOLE:
                    yield from filter(None, [first.bytes()])
                else:
                    yield from first.stream(_PIECE)
                return
            plain = SignedObject(lambda: self._sign(key), first.meta["e_tag"], self._ca_bundle)
            with closing(plain):
                yield from self._parts(key, plain, first.stream(_PIECE), range(_PART, size))

    def _at_once(self, key: str, shares: Sequence[range]) -> Iterator[Buffer]:
        """An object of middling size, each share over another connection; those of another object come after it.

        Over a long way a connection begins slowly; and one that begins beside others on a full link may stay so slow
        that it takes ten times as long as they do.
        """
        coming = self._lanes.submit([partial(self._share, key, share) for share in shares])
        for further in coming[1:]:
            further.add_done_callback(lambda _: _shared.release())
        try:
            for share in coming:
                yield from _meanwhile(share)
                size, found = share.result()
                if size != shares[-1].stop:
                    break
                for start in range(0, len(found), _PIECE):
                    yield found[start : start + _PIECE]
            else:
                return
        finally:
            for share in coming:
                share.cancel()
        yield from self.read(key)  # it is not what it was thought to be

    def _parts(self, key: str, plain: SignedObject, pieces: Iterable[Buffer], rest: range) -> Iterator[Buffer]:
        """The pieces at hand, then the rest of a large object: over one connection while that is fast, else several."""
        fast = True
        is_over = threading.Event()
        waiting: deque[Future[list[Buffer]]] = deque()
        with ThreadPoolExecutor(_AHEAD, thread_name_prefix="dpilot-s3") as pool:
            try:
                while True:
                    while not fast and rest and len(waiting) < _AHEAD and _ahead.acquire(blocking=False):
                        waiting.append(pool.submit(self._part, key, rest[:_PART], is_over))
                        rest = rest[_PART:]
                    if isinstance(pieces, list):
                        yield from pieces
                    else:
                        clock = _Clock()
                        yield from clock.timed(pieces)
                        fast = clock.is_fast
                    if waiting:
                        yield from _meanwhile(waiting[0])
                        future = waiting.popleft()
                        _ahead.release()
                        pieces = future.result()
                    elif rest:
                        nbytes = _LONG_PART if fast else _PART
                        part, rest = rest[:nbytes], rest[nbytes:]
                        try:
                            pieces = plain.stream(part)
                        except OSError:  # by obstore, then, which tells what is wrong
                            pieces = self._stream(key, part)
                    else:
                        return
            finally:
                is_over.set()
                for future in waiting:
                    future.cancel()
                    _ahead.release()

    def _stream(self, key: str, part: range) -> Iterable[Buffer]:
        return obstore.get(self._store, key, options={"range": (part.start, part.stop)}).stream(_PIECE)

    async def _share(self, key: str, part: range) -> tuple[int, memoryview]:
        """How large an object is, and part of it.

        What comes in small pieces, as over long ways, takes half as much of the processor like this as in a thread that
        waits for it: obstore would wake that for every piece.
        """
        found = await obstore.get_async(self._store, key, options={"range": (part.start, part.stop)})
        return found.meta["size"], memoryview(await found.bytes_async())

    def _part(self, key: str, part: range, is_over: threading.Event) -> list[Buffer]:
        return list(takewhile(lambda _: not is_over.is_set(), self._stream(key, part)))

    def put(self, key: str, data: bytes) -> None:
        """Write a small object, with one request; raises as :meth:`read` does."""
        with _errors():
            obstore.put(self._store, key, data, use_multipart=False)

    @staticmethod
    def part_size(nbytes: int | None) -> int:
        """The size of the parts in which to write an object of so many bytes."""
        return max(_PART, (nbytes or 0) // _MAX_PARTS + 1)

    def write(self, key: str, pieces: Iterator[bytes], part: int, errors: AbstractContextManager[None]) -> None:
        """Write a large object in parts; if the pieces end in an error, or anything fails, there is none.

        Parameters
        ----------
        key : str
        pieces : iterator of bytes
        part : int
            The size of a part, in bytes.
        errors : context manager
            Entered for what is not an error of the pieces.
        """
        failures: list[BaseException] = []

        def body() -> Iterator[bytes]:
            try:
                yield from pieces
            except BaseException as error:
                failures.append(error)
                raise

        extra = sum(_ahead.acquire(blocking=False) for _ in range(_AHEAD))
        try:
            with errors, _errors():
                obstore.put(self._store, key, body(), use_multipart=True, chunk_size=part, max_concurrency=1 + extra)
        except BaseException:
            if failures:  # says more than the error of the abort, if that failed too
                raise failures[0] from None
            raise
        finally:
            for _ in range(extra):
                _ahead.release()


def _meanwhile(coming: Future[Any]) -> Iterator[bytes]:
    """Empty pieces until something has come."""
    while not wait([coming], _LOOK_S).done:
        yield b""


def _shares(nbytes: int) -> list[range]:
    """What of an object each of several connections is to bring; the further ones are taken from `_shared`."""
    count = 1
    while count < _SHARES and (count + 1) * _SHARE <= nbytes <= _PART and _shared.acquire(blocking=False):
        count += 1
    ends = [nbytes * i // count for i in range(count + 1)]
    return [range(*pair) for pair in pairwise(ends)]


@contextmanager
def _errors() -> Iterator[None]:
    """Turn an error of obstore, which is a page of text, into one of Python's own."""
    try:
        yield
    except BaseError as error:
        text = str(error)
        message = re.search(r"<Message>([^<]+)</Message>", text)
        said = message[1] if message else text.partition("\n")[0].rpartition(" - ")[2]
        status = re.search(r"status code: (\d{3})", text)
        if status is None:
            raise ConnectionError(said) from None
        code = int(status[1])
        if code in (401, 403):
            raise PermissionError(said) from None
        passing = code >= 500 or code == 429
        raise OSError(errno.EREMOTEIO if passing else errno.EIO, said) from None


# ---------------------------------------------------------------------- finding the way

_buckets: dict[str, Bucket | None] = {}
_lock = threading.Lock()
_pid: list[int] = []  # of the process that has obstore's threads; where they were forked away, it would wait for ever


def connect(name: str, options: Mapping[str, Any], file_system: Callable[[], Any]) -> Bucket | None:
    """Reach a bucket with the credentials, endpoint and region that s3fs would use.

    Parameters
    ----------
    name : str
        The bucket's.
    options : mapping
        The `storage_options`.
    file_system : callable
        Gives the file system of s3fs that was made with them.

    Returns
    -------
    Bucket or None
        None if only s3fs can be asked: its options mean more than we can tell obstore, or the bucket is not there.
    """
    if _pid and _pid[0] != os.getpid():
        return None
    wanted = fsspec.config.conf.get("s3", {}) | options
    token = fsspec.utils.tokenize(name, wanted)
    with _lock:
        if token not in _buckets:
            found = None
            if wanted.keys() <= _OPTIONS and wanted.get("client_kwargs", {}).keys() <= _CLIENT_OPTIONS:
                try:
                    found = _connect(name, file_system())
                except Exception:
                    return None  # it may be there next time; until then, s3fs says what is wrong
            _buckets[token] = found
            _pid[:] = [os.getpid()]
        return _buckets[token]


def _connect(name: str, fs: Any) -> Bucket | None:
    client = fs.connect()
    config = client.meta.config
    anonymous = config.signature_version is UNSIGNED
    other = ("proxies", "use_dualstack_endpoint", "use_fips_endpoint")
    own = config.s3 or {}
    if (
        any(getattr(config, name, None) for name in other)
        or not own.keys() <= {"addressing_style"}
        or own.get("addressing_style", "auto") not in ("auto", "path")
    ):
        return None
    if not anonymous and config.signature_version != "s3v4":
        return None
    endpoint: str = client.meta.endpoint_url
    bundle = fs.session.get_config_variable("ca_bundle")
    # Also says whether the bucket is there, and where.
    headers = fs.call_s3("head_bucket", Bucket=name)["ResponseMetadata"]["HTTPHeaders"]
    answers_s = _answers_s(lambda: fs.call_s3("head_bucket", Bucket=name))  # now that there is a connection
    region = headers.get("x-amz-bucket-region") or client.meta.region_name or "us-east-1"
    if _AWS.fullmatch(endpoint):
        endpoint = f"https://s3.{region}.amazonaws.com"
    client_options: Any = {"connect_timeout": "20s", "read_timeout": "60s", "timeout": "1h"}
    if endpoint.startswith("http://"):
        client_options["allow_http"] = True
    elif bundle:
        client_options["root_certificate"] = Path(bundle).read_bytes()
    store = S3Store(
        name,
        endpoint=endpoint,
        region=region,
        virtual_hosted_style_request=False,
        skip_signature=anonymous,
        client_options=client_options,
        retry_config=_RETRY,
        # Always given, as obstore would look into the environment for a part of them otherwise.
        credential_provider=None if anonymous else _Credentials(fs),
    )
    return Bucket(
        store, lambda key: str(fs.url(f"{name}/{key}", expires=_VALID_S)), answers_s, Path(bundle) if bundle else None
    )


def _answers_s(ask: Callable[[], object]) -> float:
    """How soon a server answers. The least of a few times: a busy machine makes any one of them look long."""
    least_s = float("inf")
    for _ in range(_MOST_ASKED):
        asked = time.perf_counter()
        ask()
        least_s = min(least_s, time.perf_counter() - asked)
        if least_s <= _NEAR_S:
            break
    return least_s


class _Credentials:
    """Those of s3fs, as obstore asks for them. They are neither shown nor pickled."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs

    def __call__(self) -> Any:
        fs = self._fs
        if fs.key and fs.secret:
            return {"access_key_id": fs.key, "secret_access_key": fs.secret, "token": fs.token, "expires_at": None}
        frozen = sync(fs.loop, self._frozen, fs.session)
        # botocore renews those that expire; so ask it again before long.
        soon = datetime.now(UTC) + timedelta(minutes=6)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": soon,
        }

    @staticmethod
    async def _frozen(session: Any) -> Any:
        return await (await session.get_credentials()).get_frozen_credentials()
