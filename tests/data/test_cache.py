import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from dpilot.data import FileEntry, Manifest
from dpilot.data.cache import Cache
from dpilot.errors import StoreFullError, UnitCanceledError
from tests.helpers import eventually


def manifest(du, nbytes=10, name="a"):
    return Manifest(du, (FileEntry(name, nbytes),), 0.0)


def bringing(nbytes=10, name="a", log=None, pause=None):
    def bring(directory: Path):
        if log is not None:
            log.append(directory)
        if pause is not None:
            pause.wait()
        (directory / name).write_bytes(b"x" * nbytes)

    return bring


def test_it_is_brought_once_and_read_only(tmp_path):
    cache, log = Cache(tmp_path / "cache", 100), []
    for first in (True, False):
        with cache.hold(manifest("du-1"), bringing(log=log)) as cached:
            assert cached.brought is first
            assert (cached.path / "a").read_bytes() == b"x" * 10
            assert (cached.path / "a").stat().st_mode & 0o777 == 0o444
    assert len(log) == 1


def test_who_waits_for_another_one_can_give_up(tmp_path):
    """Then it holds nothing, also once what it waited for is there."""
    cache, pause, begun, gave_up = Cache(tmp_path, 10), threading.Event(), threading.Event(), threading.Event()

    def bring(directory):
        begun.set()
        bringing(pause=pause)(directory)

    def first():
        with cache.hold(manifest("du-1"), bring):
            pass

    def check():
        raise UnitCanceledError("it is not wanted any more")

    def second():
        with pytest.raises(UnitCanceledError), cache.hold(manifest("du-1"), bringing(), check):
            pass
        gave_up.set()

    threads = [threading.Thread(target=work) for work in (first, second)]
    threads[0].start()
    assert begun.wait(30)
    threads[1].start()
    assert gave_up.wait(30)
    pause.set()
    for thread in threads:
        thread.join(30)
    eventually(lambda: all(thread.name != "dpilot-lock" for thread in threading.enumerate()), "nobody waits")
    with cache.hold(manifest("du-2"), bringing()) as cached:
        assert cached.evicted == ("du-1",)


def test_many_threads_wait_for_one(tmp_path):
    cache, log, pause = Cache(tmp_path, 100), [], threading.Event()
    found = []

    def use():
        with cache.hold(manifest("du-1"), bringing(log=log, pause=pause)) as cached:
            found.append((cached.path / "a").read_bytes())

    threads = [threading.Thread(target=use) for _ in range(16)]
    for thread in threads:
        thread.start()
    pause.set()
    for thread in threads:
        thread.join(30)
    assert len(log) == 1
    assert found == [b"x" * 10] * 16


def test_another_content_is_another_entry(tmp_path):
    cache = Cache(tmp_path, 100)
    with cache.hold(manifest("du-1"), bringing()) as old, cache.hold(manifest("du-1", 20), bringing(20)) as new:
        assert old.path != new.path
        assert new.brought


def test_the_least_recently_used_goes_first(tmp_path):
    cache = Cache(tmp_path, 30)
    for number in range(3):
        with cache.hold(manifest(f"du-{number}"), bringing()) as cached:
            os.utime(cached.path, (number, number))
    with cache.hold(manifest("du-0"), bringing()) as cached:
        assert not cached.brought  # and is now the most recently used
    with cache.hold(manifest("du-9", 15), bringing(15)) as cached:
        assert cached.evicted == ("du-1", "du-2")
    left = {path.name.split("@")[0] for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {"du-0", "du-9"}


def test_what_is_in_use_stays(tmp_path):
    cache = Cache(tmp_path, 15)
    with cache.hold(manifest("du-1"), bringing()) as used:
        with pytest.raises(StoreFullError, match="what is in use stays"), cache.hold(manifest("du-2"), bringing()):
            pass
        assert (used.path / "a").exists()
    with cache.hold(manifest("du-2"), bringing()) as cached:
        assert cached.evicted == ("du-1",)


def test_a_failure_leaves_nothing_and_the_next_one_brings_it(tmp_path):
    cache = Cache(tmp_path, 100)

    def fail(directory):
        (directory / "a").write_text("half")
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"), cache.hold(manifest("du-1"), fail):
        pass
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    with cache.hold(manifest("du-1"), bringing()) as cached:
        assert cached.brought


def _bring_for_ever(root, begun):
    def bring(directory):
        (directory / "a").write_text("half")
        begun.set()
        time.sleep(600)

    with Cache(root, 100).hold(manifest("du-1"), bring):
        pass


def test_one_that_is_killed_leaves_the_entry_to_the_next(tmp_path):
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    process = context.Process(target=_bring_for_ever, args=(tmp_path, begun))
    process.start()
    assert begun.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    with Cache(tmp_path, 100).hold(manifest("du-1"), bringing()) as cached:
        assert (cached.path / "a").read_bytes() == b"x" * 10
    assert not list(tmp_path.glob("*.part"))
