"""Jobs in threads of a process that ends."""

from __future__ import annotations

import pickle
import threading

import pytest

from dpilot.runtime.carrier import Carrier
from dpilot.runtime.jobs import Setting

STOPPED: list[bool] = []
BEGUN, ENDED = threading.Event(), threading.Event()


class Waits:
    """A job that is stopped."""

    def run(self, setting: Setting) -> None:
        BEGUN.set()
        assert setting.stop.wait(60)
        STOPPED.append(setting.stop.leaves)
        ENDED.set()


@pytest.mark.parametrize("is_given", [True, False])
def test_what_the_scheduler_may_have_given_to_another_one_is_left_when_the_process_ends(is_given: bool) -> None:
    """A client's own upload is nobody else's: it removes what it has made of it."""
    carrier = Carrier(lambda *_, **__: None, lambda place: place.store, 1)
    BEGUN.clear()
    ENDED.clear()
    STOPPED.clear()
    if is_given:
        carrier.take("job", pickle.dumps(Waits()))
    else:
        carrier.start(carrier.carry_out, "job", Waits())
    assert BEGUN.wait(60)
    carrier.close()
    assert ENDED.wait(60)
    (leaves,) = STOPPED
    assert leaves == is_given
