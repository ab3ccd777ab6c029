"""A call on its way to a worker: what stays plain, what is pickled by value, and what only its name travels of."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest
from dask.base import tokenize

from dpilot.data import Store
from dpilot.placement import Request
from dpilot.runtime.places import Place, Replica
from dpilot.runtime.work import (
    Call,
    Program,
    Reference,
    UnitTask,
    dump_arguments,
    dump_function,
    load_arguments,
)
from tests import units


class Handle:
    """Stands in for a unit or data unit: a thing that must not be pickled itself."""

    def __init__(self, id: str) -> None:
        self.id = id

    def __reduce__(self) -> Any:
        raise AssertionError(f"{self.id} was pickled, not referred to")


def refer(obj: Any) -> Reference | None:
    return Reference("data", obj.id) if isinstance(obj, Handle) else None


def there(*args: Any, put: dict[str, Any] | None = None, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What arrives of these arguments, with the values of `put` in place of the handles of these ids."""
    data, found = dump_arguments(args, kwargs, refer)
    resolve = {Reference("data", id): value for id, value in (put or {}).items()}
    assert set(found) == set(resolve)
    return load_arguments(data, resolve)


@pytest.mark.parametrize(
    "args",
    [(), (1, 2.5, "a", b"b", True, None), ([1, {"a": (2, 3)}],), ({"deep": [{"er": {1, 2}}]}, 1)],
)
def test_arguments_arrive_as_they_were(args: tuple[Any, ...]) -> None:
    assert there(*args) == (args, {})
    assert there(*args, key=args) == (args, {"key": args})


def test_plain_arguments_are_not_searched_for_references() -> None:
    def never(obj: Any) -> Reference | None:
        raise AssertionError("plain values refer to nothing")

    args = (1, 2.5, "a", b"b", True, None)
    assert dump_arguments(args, {}, never) == (pickle.dumps((args, {}), protocol=pickle.HIGHEST_PROTOCOL), ())


def test_a_subclass_of_a_plain_type_is_searched() -> None:
    class Named(str):
        pass

    data, found = dump_arguments((Named("du"),), {}, lambda o: Reference("data", str(o)) if type(o) is Named else None)
    assert found == (Reference("data", "du"),)
    assert load_arguments(data, {found[0]: 1}) == ((1,), {})


def test_references_are_found_however_deep() -> None:
    args, kwargs = there(
        Handle("a"),
        [Handle("b"), {"x": (Handle("c"), 1)}],
        key={"y": [[Handle("d")]]},
        put={"a": "A", "b": "B", "c": "C", "d": "D"},
    )
    assert args == ("A", ["B", {"x": ("C", 1)}])
    assert kwargs == {"key": {"y": [["D"]]}}


def test_references_are_found_in_objects_and_closures() -> None:
    class Holder:
        def __init__(self, held: Any) -> None:
            self.held = held

    handle = Handle("b")

    def closure() -> Any:
        return handle

    (holder, function), _ = there(Holder(Handle("a")), closure, put={"a": "A", "b": "B"})
    assert holder.held == "A"
    assert function() == "B"


def test_a_reference_is_told_once_in_the_order_of_finding_and_resolved_everywhere() -> None:
    one = Handle("b")
    data, found = dump_arguments((one, [one, Handle("a")]), {"k": Handle("b")}, refer)
    assert found == (Reference("data", "b"), Reference("data", "a"))
    value = object()
    args, kwargs = load_arguments(data, {found[0]: value, found[1]: 2})
    assert args[0] is args[1][0] is kwargs["k"] is value


def test_a_result_and_a_data_unit_of_one_id_are_two_references() -> None:
    kinds = iter(["data", "result"])
    data, found = dump_arguments(
        ([Handle("x"), Handle("x")],), {}, lambda o: Reference(next(kinds), o.id) if isinstance(o, Handle) else None
    )
    assert load_arguments(data, {Reference("data", "x"): 1, Reference("result", "x"): 2}) == (([1, 2],), {})
    assert len(found) == 2


def test_an_unresolved_reference_is_an_error_and_not_a_hole() -> None:
    data, _ = dump_arguments((Handle("a"),), {}, refer)
    with pytest.raises(KeyError, match="id='a'"):
        load_arguments(data, {})


def test_a_shared_object_arrives_as_one() -> None:
    shared = [1]
    (args, other), _ = there([shared], shared)
    assert args[0] is other


@pytest.mark.parametrize("put_as", ["args", "kwargs", "nested"])
def test_what_cannot_be_pickled_is_refused_at_once(put_as: str) -> None:
    lock = threading.Lock()
    args, kwargs = {"args": ((lock,), {}), "kwargs": ((), {"k": lock}), "nested": (([{"k": lock}],), {})}[put_as]
    with pytest.raises(TypeError, match="lock"):
        dump_arguments(args, kwargs, refer)


def test_a_function_that_holds_what_cannot_be_pickled_is_refused_at_once() -> None:
    lock = threading.Lock()
    with pytest.raises(TypeError, match="lock"):
        dump_function(lambda: lock)


def test_a_function_of_a_module_travels_by_name() -> None:
    data = dump_function(units.same)
    assert pickle.loads(data) is units.same
    assert len(data) < 100


def _counter() -> Callable[[], int]:
    count = 41

    def following() -> int:
        return count + 1

    return following


@pytest.mark.parametrize("function", [lambda: 42, _counter()], ids=["lambda", "closure"])
def test_lambdas_and_closures_travel_by_value(function: Callable[[], int]) -> None:
    assert pickle.loads(dump_function(function))() == 42


def test_a_function_of_the_main_program_travels_by_value() -> None:
    code = """
import sys
from dpilot.runtime.work import dump_function
factor = 6
def of_main(n):
    return factor * n
sys.stdout.buffer.write(dump_function(of_main))
"""
    data = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert pickle.loads(data)(7) == 42


def unit(id: str = "cu-1", work: Program | Call | None = None) -> UnitTask:
    program = Program("/bin/date", (), {"A": "1"}, None, "stdout.txt", "stderr.txt")
    return UnitTask(id, work or program, Request("cds", inputs=("du-1",)), 1.5, outputs=(("du-2", ("*.txt",)),))


def test_a_unit_is_the_same_on_the_other_side() -> None:
    for work in (None, Call(dump_function(units.same), dump_arguments((1,), {}, refer)[0])):
        sent = unit(work=work)
        assert pickle.loads(pickle.dumps(sent)) == sent
        assert cloudpickle.loads(cloudpickle.dumps(sent)) == sent


def test_the_scheduler_reads_the_request_without_the_users_modules() -> None:
    """The function's module is not there where the unit is unpickled, and is not asked for."""
    sent = unit(work=Call(b"cno_such_module\nfunction\n.", dump_arguments((1,), {}, refer)[0]))
    arrived = pickle.loads(pickle.dumps(sent))
    assert arrived.request == sent.request
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        pickle.loads(arrived.work.function)


def test_dask_tells_units_apart_by_their_ids() -> None:
    assert tokenize(unit("cu-1")) == tokenize(unit("cu-1"))
    assert tokenize(unit("cu-1")) != tokenize(unit("cu-2"))


def test_a_replica_arrives_as_it_was_each_time_it_is_sent():
    replica = Replica("pd-1", Place(Store("s3://bucket/d", datacenter="eu", machine="m"), "tcp://w:1"), 1, False)
    for _ in range(2):
        (come,) = pickle.loads(pickle.dumps([replica]))
        assert (come.pd, come.distance, come.may_link) == ("pd-1", 1, False)
        assert come.place.host == "tcp://w:1"
        assert come.place.store.url == replica.place.store.url
