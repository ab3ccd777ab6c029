"""What goes wrong while files are on their way: nothing half-written is listed, and the error names what to do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from dpilot.data import Manifest, Retry, Source, Stop, Store, copy_unit, download, expand_sources, upload, verify
from dpilot.data.locate import locate
from dpilot.data.retry import may_pass
from dpilot.demo import seaweed
from dpilot.errors import DataError, DescriptionError, PilotError, StoreError, StoreFullError, TransferStoppedError
from tests.data.conftest import MakeStore, content, left, put, read_files, sources, write_files
from tests.services import S3, missing

DU = "du-0123456789ab"
LARGE = bytes(20 * 1024 * 1024)  # of more than two pieces, however it is moved
AT_ONCE = Retry(times=3, delay_s=0.001)


class Once:
    """Does something when the first bytes have moved."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action: Callable[[], object] | None = action
        self.nbytes = 0

    def __call__(self, nbytes: int) -> None:
        self.nbytes += nbytes
        if self.nbytes and self.action is not None:
            action, self.action = self.action, None
            action()


# ---------------------------------------------------------------------- sources that do not stay as they are


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (append, "bytes when it was found, and|was changed while it was read"),
        (rewrite, "was changed while it was read"),
        (lambda path: os.truncate(path, 1), "bytes when it was found, and"),
        (Path.unlink, "there is no such file"),
    ],
    ids=["grows", "is rewritten", "shrinks", "vanishes"],
)
def test_a_source_that_changes_is_named(
    store: Store, tmp_path: Path, change: Callable[[Path], object], problem: str
) -> None:
    found = sources(tmp_path / "in", {"a": b"1", "b": LARGE})
    path = tmp_path / "in" / "b"
    with pytest.raises(StoreError, match=problem) as caught:
        upload({"b": found["b"]}, store, DU, on_bytes=Once(lambda: change(path)))
    assert f"file://{path}" in str(caught.value)
    assert left(store) == set()


def test_no_thread_is_left_to_the_garbage_collector(make_store: MakeStore, tmp_path: Path) -> None:
    """It may come when a thread is being started, which waits for ever if another one is to be joined then."""

    def stop() -> None:
        raise ArithmeticError

    found = sources(tmp_path / "in", {"a": LARGE})
    store = make_store()
    before = set(threading.enumerate())
    with pytest.raises(ArithmeticError) as caught:
        upload(found, store, DU, on_bytes=Once(stop))
    more = [thread.name for thread in threading.enumerate() if thread not in before]
    assert caught.traceback  # has the frames, and what they read from
    assert not [name for name in more if name.startswith("dpilot-")]


def test_who_is_given_up_for_lost_leaves_alone_what_another_is_making(make_store: MakeStore, tmp_path: Path) -> None:
    source, target = make_store(), make_store()
    manifest = put(source, DU, tmp_path / "in", {"a": b"1", "b": b"2"})
    stop, second_is_there, failures = Stop(), threading.Event(), list[PilotError]()
    first_is_there = threading.Event()

    def at_second_file(action: Callable[[], object]) -> Callable[[int], None]:
        begun: list[int] = []

        def seen(nbytes: int) -> None:
            begun.append(nbytes)
            if begun.count(0) == 2 and nbytes == 0:
                action()

        return seen

    def is_lost() -> None:
        first_is_there.set()
        second_is_there.wait(60)

    def lost() -> None:
        try:
            copy_unit(source, target, manifest, max_transfers=1, on_bytes=at_second_file(is_lost), stop=stop)
        except PilotError as error:
            failures.append(error)

    def goes_on() -> None:
        second_is_there.set()
        thread.join(60)

    thread = threading.Thread(target=lost)
    thread.start()
    assert first_is_there.wait(60)
    stop.abandon()
    copy_unit(source, target, manifest, max_transfers=1, on_bytes=at_second_file(goes_on))
    assert not thread.is_alive()
    assert [type(error) for error in failures] == [TransferStoppedError]
    assert verify(target, manifest) == []


def test_a_source_that_has_grown_since_it_was_found_is_refused(store: Store, tmp_path: Path) -> None:
    found = sources(tmp_path / "in", {"a": b"1"})
    append(tmp_path / "in" / "a")
    with pytest.raises(StoreError, match="had 1 bytes when it was found, and 5 when it was read; try again"):
        upload(found, store, DU)
    assert left(store) == set()


@pytest.mark.s3
def test_an_object_that_vanishes_is_named(s3: S3, tmp_path: Path) -> None:
    fs = fsspec.filesystem("s3", **s3.storage_options)
    path = f"{s3.bucket()}/a"
    fs.pipe_file(path, bytes(64 * 1024 * 1024))
    store = Store(tmp_path / "store").open()
    with pytest.raises(StoreError, match=f"cannot read s3://{path}: "):
        upload(
            expand_sources([f"s3://{path}"], s3.storage_options),
            store,
            DU,
            on_bytes=Once(lambda: fs.rm_file(path)),
            retry=AT_ONCE,
        )
    assert left(store) == set()


def test_a_replica_that_vanishes_is_named(make_store: MakeStore, tmp_path: Path) -> None:
    one, two = make_store(), make_store()
    manifest = put(one, DU, tmp_path / "in", {"a": b"1", "b": b"22"})
    one.remove(DU)
    with pytest.raises(StoreError, match=f"cannot read {one.url}.*there is no such file".replace("[", r"\[")):
        copy_unit(one, two, manifest, retry=AT_ONCE)
    assert left(two) == set()
    assert two.list_units() == []


# ---------------------------------------------------------------------- targets that cannot take it


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        missing("only root can mount a small disk, and not in every container")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_a_disk_that_is_full_says_so(small_disk: Path, tmp_path: Path) -> None:
    store = Store(small_disk / "store").open()
    manifest = put(store, "du-1", tmp_path / "1", {"a": bytes(1_000_000)})
    files = {"a": b"1", "b": bytes(2_000_000), "c": bytes(2_000_000)}
    with pytest.raises(StoreFullError, match="No space left on device; free some space there, or choose another store"):
        upload(sources(tmp_path / "2", files), store, "du-2")
    assert left(store) == {"du-1/a", "du-1/.dpilot-manifest.json"}
    assert verify(store, manifest) == []
    with pytest.raises(StoreFullError, match="free some space there"):
        download(Store(tmp_path / "2").open(), put_large(tmp_path), small_disk / "out")
    assert read_files(small_disk / "out") == {}
    # It is no error that passes: there was one attempt.
    put(store, "du-2", tmp_path / "3", {"b": bytes(2_000_000)})


def put_large(tmp_path: Path) -> Manifest:
    return put(Store(tmp_path / "2").open(), DU, tmp_path / "4", {"large": LARGE})


PROGRAM = """
import os, sys
from dpilot.data import Store, expand_sources, upload
from dpilot.errors import PilotError
os.setgid(65534)
os.setuid(65534)
try:
    store = Store(sys.argv[2]).open()
    upload(expand_sources([sys.argv[1]]), store, "du-1")
except PilotError as error:
    print(error)
"""


@pytest.mark.parametrize("forbidden", ["in/a", "store/.dpilot-store.json", "store"])
def test_permission_denied_names_the_place(tmp_path: Path, forbidden: str) -> None:
    """Root may read and write anywhere, so in a child that is somebody else."""
    if os.geteuid() != 0:
        missing("only root can become somebody else")
    Store(tmp_path / "store").open()
    write_files(tmp_path / "in", {"a": b"1"})
    for path in [tmp_path, *tmp_path.parents]:
        path.chmod(path.stat().st_mode | 0o555)
    (tmp_path / "store").chmod(0o777)
    (tmp_path / forbidden).chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "in" / "a"), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path / forbidden) in done.stdout
    assert "Permission denied" in done.stdout
    (tmp_path / forbidden).chmod(0o777)
    assert left(Store(tmp_path / "store").open()) == set()


# ---------------------------------------------------------------------- what passes is tried again


class Moody(ThreadingHTTPServer):
    """A web server that refuses, or breaks off, the first requests for each path."""

    def __init__(self, moods: list[int | None]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.moods = moods  # statuses; None: half of the file
        self.asked = 0
        self.seen = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file"


class _Answer(BaseHTTPRequestHandler):
    server: Moody

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.seen.set()
        mood = self.server.moods.pop(0) if self.server.moods else 200
        self.send_response(200 if mood is None else mood)
        self.send_header("Content-Length", "1000" if mood in (None, 200) else "0")
        self.end_headers()
        if mood in (None, 200):
            self.wfile.write(b"x" * (500 if mood is None else 1000))
            self.wfile.flush()
            if mood is None:
                self.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def moody() -> Iterator[Callable[..., Moody]]:
    with ExitStack() as stack:

        def start(*moods: int | None) -> Moody:
            server = stack.enter_context(Moody(list(moods)))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return server

        yield start


def web_source(server: Moody) -> dict[str, Source]:
    return {"file": Source(locate(server.url, field="x"), 1000)}


@pytest.mark.parametrize("mood", [503, 500, 429, None])
def test_an_error_that_passes_is_tried_again(moody: Callable[..., Moody], tmp_path: Path, mood: int | None) -> None:
    store = Store(tmp_path / "store").open()
    server = moody(mood, mood)
    moved: list[int] = []
    manifest = upload(web_source(server), store, DU, retry=AT_ONCE, on_bytes=moved.append)
    assert server.asked == 3
    assert content(store, DU, "file") == b"x" * 1000
    assert sum(moved) == manifest.nbytes == 1000  # what was moved in vain is taken back
    with pytest.raises(StoreError) as caught:
        upload(web_source(moody(*[mood] * 10)), store, "du-2", retry=AT_ONCE)
    assert caught.value.transient
    assert left(store) == {f"{DU}/file", f"{DU}/.dpilot-manifest.json"}


@pytest.mark.parametrize("mood", [404, 403, 401])
def test_an_error_that_stays_is_not_tried_again(moody: Callable[..., Moody], tmp_path: Path, mood: int) -> None:
    server = moody(*[mood] * 10)
    with pytest.raises(StoreError) as caught:
        upload(web_source(server), Store(tmp_path / "store").open(), DU, retry=Retry(times=5, delay_s=60))
    assert server.asked == 1
    assert not caught.value.transient


def test_a_wait_ends_when_the_transfer_is_stopped(moody: Callable[..., Moody], tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    server, stop, ended = moody(*[503] * 100), threading.Event(), []

    def move() -> None:
        with pytest.raises(PilotError) as caught:
            upload(web_source(server), store, DU, retry=Retry(times=9, delay_s=3600), stop=stop)
        ended.append(caught.value)

    thread = threading.Thread(target=move)
    thread.start()
    assert server.seen.wait(60)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert len(ended) == 1
    assert left(store) == set()


def test_a_transfer_that_is_stopped_leaves_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    store, stop = make_store(), threading.Event()
    with pytest.raises(TransferStoppedError):
        upload(sources(tmp_path / "in", {"a": b"1", "b": LARGE}), store, DU, on_bytes=Once(stop.set), stop=stop)
    assert left(store) == set()


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(16, "Device or resource busy"), True),
        (FileNotFoundError(2, "No such file"), False),
        (PermissionError(13, "Permission denied"), False),
        (OSError(28, "No space left on device"), False),
        (ValueError("x"), False),
    ],
    ids=repr,
)
def test_which_errors_pass(error: Exception, passes: bool) -> None:
    assert may_pass(error) is passes
    wrapped = RuntimeError("of a library")
    wrapped.__cause__ = error
    assert may_pass(wrapped) is passes


# ---------------------------------------------------------------------- a server that dies


@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_server_that_is_killed_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = seaweed._free_ports(5)
    monkeypatch.setattr(seaweed, "_free_ports", lambda count: ports[:count])
    with ExitStack() as last:
        directory = tmp_path / "server"
        first = seaweed.s3_server(directory, ["bucket"])
        try:
            options = first.__enter__()
        except PilotError as error:
            missing(str(error))
        last.callback(first.__exit__, None, None, None)
        store = Store("s3://bucket/store", options).open()
        kept = put(store, "du-1", tmp_path / "1", {"a": b"before"})

        def kill() -> None:
            last.pop_all().close()
            thread.start()

        def restart() -> None:
            last.enter_context(seaweed.s3_server(directory, ["bucket"]))

        thread = threading.Thread(target=restart)
        files = {"a": b"1", "b": LARGE, "c": b"2"}
        found = sources(tmp_path / "2", files)
        try:
            manifest = upload(found, store, "du-2", retry=Retry(times=12, delay_s=0.2), on_bytes=Once(kill))
        finally:
            thread.join()
        assert verify(store, manifest) == []
        assert verify(store, kept) == []
        assert store.list_units() == ["du-1", "du-2"]

        # And if it does not come back, what is there is not listed, and the next one cleans it up.
        thread = threading.Thread(target=lambda: None)
        with pytest.raises(StoreError, match=r"s3://bucket/store/du-3"):
            upload(found, store, "du-3", retry=AT_ONCE, on_bytes=Once(kill))
        thread.join()
        last.enter_context(seaweed.s3_server(directory, ["bucket"]))
        assert store.list_units() == ["du-1", "du-2"]
        again = upload({"a": found["a"]}, store, "du-3")
        assert set(store.unit("du-3").sizes()) == {"a", ".dpilot-manifest.json"}
        assert verify(store, again) == []


# ---------------------------------------------------------------------- odd trees


def test_links_that_go_in_circles_are_refused(tmp_path: Path) -> None:
    data = write_files(tmp_path / "data", {"a": b"1"})
    for target in ("loop", ".", ".."):
        (data / "loop").symlink_to(target)
        with pytest.raises(DataError, match="'loop' in it is a link"):
            expand_sources([data])
        assert list(expand_sources([f"{data}/**"])) in (["a"], ["data/a"])
        (data / "loop").unlink()


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, {"x/a": b"1", "y/a": b"2"})
    with pytest.raises(DescriptionError, match="would both be 'a' in the data unit"):
        expand_sources([tmp_path / "x" / "a", tmp_path / "y" / "a"])


def test_nothing_is_something(make_store: MakeStore, tmp_path: Path) -> None:
    """Files without bytes, and a data unit without files."""
    one, two = make_store(), make_store()
    empty = upload({}, one, "du-1")
    zero = put(one, "du-2", tmp_path / "in", {"a": b"", "sub/b": b""})
    for manifest in (empty, zero):
        assert copy_unit(one, two, manifest) == manifest
        assert verify(two, manifest) == []
        assert download(two, manifest, tmp_path / "out") == 0
    assert two.list_units() == ["du-1", "du-2"]
    assert read_files(tmp_path / "out") == {"a": b"", "sub/b": b""}


# ---------------------------------------------------------------------- memory

MEASURE = """
import json, re, sys
from pathlib import Path
from dpilot.data import Store, copy_unit, download, expand_sources, upload, verify

def peak():
    # Not getrusage(): that would count what the tests had in memory when they forked.
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])

source, out, *urls = sys.argv[1:-1]
options = json.loads(sys.argv[-1])
stores = [Store(url, options if url.startswith("s3") else None).open() for url in urls]
warm = Path(out).with_name("warm")
warm.write_bytes(bytes(100))
for store in stores:
    upload(expand_sources([warm]), store, "du-warm")
before = peak()
manifest = upload(expand_sources([source]), stores[0], "du-1")
for one, two in zip(stores, stores[1:]):
    copy_unit(one, two, manifest)
download(stores[-1], manifest, Path(out))
assert verify(stores[-1], manifest) == []
print(json.dumps([manifest.nbytes, peak() - before]))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("by", ["file", pytest.param("s3", marks=pytest.mark.s3)])
def test_memory_does_not_grow_with_the_file(by: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 1 << 30)
    urls, options = [str(tmp_path / "one"), str(tmp_path / "two")], {}
    if by == "s3":
        server: S3 = request.getfixturevalue("s3")
        urls, options = [f"s3://{server.bucket()}/store"], server.storage_options
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large), str(tmp_path / "out"), *urls, json.dumps(options)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    nbytes, growth = json.loads(done.stdout)
    assert nbytes == 1 << 30
    assert growth < 256 << 20
