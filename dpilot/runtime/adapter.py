"""All that dpilot uses of distributed's internals, in one place.

The mechanism (measured on distributed 2026.8): a plugin's ``update_graph`` is called after the tasks
of a graph exist and before their first transition. A task that is then given a resource which no worker
has goes to the state ``no-worker`` and stays there: it is *parked*. Restricting it to one worker
instead and asking for its transition to ``processing`` *binds* it. When its worker dies, its restriction
names nobody, so it comes back to ``no-worker`` by itself.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from dask._task_spec import Task
from dask.typing import Key
from dask.utils import typename
from distributed import Client, Reschedule, Scheduler, Worker, get_worker
from distributed.core import Status, error_message
from distributed.protocol.serialize import ToPickle
from distributed.scheduler import TaskState, TaskStateState
from distributed.threadpoolexecutor import thread_state as pool_state
from distributed.utils import sync
from distributed.worker import _run_task
from distributed.worker_state_machine import FreeKeysEvent

from dpilot.runtime.work import Bundled, UnitTask

_T = TypeVar("_T")

__all__ = [
    "GANG",
    "HANDLER",
    "PARKED",
    "Outcome",
    "Sealed",
    "address_of",
    "answer_calls",
    "answer_cancels",
    "answer_gangs",
    "answer_reports",
    "answer_requests",
    "attach_metadata",
    "bind",
    "call_from_client",
    "call_from_worker",
    "call_in_loop",
    "call_later",
    "call_soon",
    "cancel",
    "carry_out",
    "come_again",
    "computed",
    "connection_args",
    "contact_of",
    "deliver",
    "error_text",
    "fail",
    "failed_too_often",
    "has_seceded",
    "hide_parked",
    "hold",
    "in_loop",
    "is_connected",
    "is_executing",
    "is_full",
    "is_queueing",
    "is_running",
    "is_status_change",
    "log_no_failures",
    "memory_nbytes",
    "n_threads",
    "on_events",
    "on_lost",
    "on_refused",
    "on_seceded",
    "order",
    "park",
    "pin",
    "prioritize",
    "report",
    "retry",
    "run_soon",
    "scheduler_of",
    "scratch_of",
    "send_event",
    "supply",
    "take_orders",
    "takes_tasks",
    "this_task",
    "unbind",
    "unit_of",
    "units_in",
    "unpin",
    "was_freed",
    "worker_of",
    "worker_tags",
]

#: A resource that no worker has.
PARKED = {"dpilot:parked": 1.0}
#: The operation's name, of calls to the scheduler and of messages in the streams.
HANDLER = "dpilot"
#: That of a worker that asks another one to take part in a unit.
GANG = "dpilot-gang"
#: The client in whose name the plugin keeps units alive when the clients that submitted them are gone. Dask logs what a
#: client cancels as events of a topic of its name: so it is not that of dpilot's own topic.
_KEEPER = "dpilot-keeper"


@dataclass(frozen=True, slots=True)
class Sealed:
    """Something pickled that may have credentials in it: Dask's log of messages shows what they are made of."""

    data: bytes = field(repr=False)

    @classmethod
    def of(cls, value: Any) -> ToPickle[Sealed]:
        """`value`, to be put into a message; on arrival it is a Sealed again."""
        return ToPickle(cls(pickle.dumps(value)))

    def open(self) -> Any:
        """The value."""
        return pickle.loads(self.data)


# -- on the scheduler: tasks


def unit_of(task: TaskState) -> UnitTask | None:
    """The compute unit that a task is, or None if it is somebody else's task."""
    arguments = getattr(task.run_spec, "args", None)
    return arguments[0] if arguments and isinstance(arguments[0], UnitTask) else None


def units_in(scheduler: Scheduler, keys: Iterable[Key]) -> Iterator[tuple[TaskState, UnitTask]]:
    """The compute units among the tasks of a graph."""
    for key in keys:
        task = scheduler.tasks.get(key)
        if task is not None and (unit := unit_of(task)) is not None:
            yield task, unit


def park(task: TaskState) -> None:
    """Keep a task from running until it is bound. It must not be bound now: Dask counts its resources by these."""
    task.worker_restrictions = None
    task.resource_restrictions = PARKED


class _Unrunnable(dict[TaskState, float]):
    """Tasks in ``no-worker``. Dask goes through them for each worker that joins, and need not see the parked ones."""

    def __init__(self, tasks: Mapping[TaskState, float]) -> None:
        super().__init__()
        self._seen: dict[TaskState, None] = {}
        for task, since in tasks.items():
            self[task] = since

    def __setitem__(self, task: TaskState, since: float) -> None:
        super().__setitem__(task, since)
        if task.resource_restrictions is not PARKED:
            self._seen[task] = None

    def __iter__(self) -> Iterator[TaskState]:
        return iter(self._seen)

    def pop(self, task: TaskState, *default: Any) -> Any:
        if self._seen:  # the hash of a task is a method of Dask's
            self._seen.pop(task, None)
        return super().pop(task, *default)

    def clear(self) -> None:
        self._seen.clear()
        super().clear()


def hide_parked(scheduler: Scheduler) -> None:
    """Spare Dask the parked tasks when a worker joins: a hundred thousand of them would take it a tenth of a second."""
    scheduler.unrunnable = _Unrunnable(scheduler.unrunnable)


def prioritize(task: TaskState, priority: float, order: float) -> None:
    """Say which of the tasks that wait at one worker goes first: the higher `priority`, then the lower `order`.

    Of equal priority, it goes before tasks that are no units (Dask's second number is of their graph): it was sent in
    its turn.
    """
    assert task.priority is not None
    task.priority = (-priority, -1, order)


def bind(scheduler: Scheduler, bindings: Mapping[Key, str], bundled: Mapping[Key, bytes | None]) -> None:
    """Send parked tasks each to the worker (an address) that was chosen for it.

    Those in `bundled`, which depend on no others, go to the units' plugin there, in one message for each worker, as
    :class:`Bundled`, with their inputs: to the scheduler they are being processed as any other, but the worker's own
    Dask hears nothing.
    """
    stimulus = _stimulus("bind")
    recommendations: dict[Key, TaskStateState] = {}
    to_clients: dict[str, list[Any]] = {}
    to_workers: dict[str, list[Any]] = {}
    bundles: defaultdict[str, list[Bundled]] = defaultdict(list)
    for key, address in bindings.items():
        task = scheduler.tasks[key]
        task.resource_restrictions = None
        task.worker_restrictions = {address}
        if key not in bundled:
            recommendations[key] = "processing"
            continue
        further, for_clients, for_workers = scheduler._transition(key, "processing", stimulus)
        if for_workers.pop(address, None):  # Dask's own message
            unit = unit_of(task)
            assert unit is not None
            assert task.run_id is not None
            bundles[address].append(Bundled(str(key), task.run_id, unit, bundled[key]))
        recommendations.update(further)
        to_clients.update(for_clients)
        to_workers.update(for_workers)
    for address, units in bundles.items():
        order(scheduler, address, {"what": "take", "bundled": ToPickle(units)})
    # Recommendations are carried out last in, first out.
    scheduler._transitions(dict(reversed(list(recommendations.items()))), to_clients, to_workers, stimulus)
    scheduler.send_all(to_clients, to_workers)


def unbind(scheduler: Scheduler, keys: Iterable[Key]) -> None:
    """Take bound tasks back from their workers. Park them when they are released, before they go on."""
    recommendations: dict[Key, TaskStateState] = {}
    for key in keys:
        task = scheduler.tasks.get(key)
        if task is not None and task.state == "processing":
            recommendations[key] = "released"
    scheduler.transitions(recommendations, stimulus_id=_stimulus("unbind"))


def supply(scheduler: Scheduler, key: Key, pickled: bytes) -> None:
    """Have a parked task give a result that is known already, on any worker, as an ordinary task of Dask's."""
    task = scheduler.tasks.get(key)
    if task is None or task.state != "no-worker":
        return
    task.run_spec = Task(key, pickle.loads, pickled)
    task.resource_restrictions = task.worker_restrictions = None
    scheduler.transitions({key: "released"}, stimulus_id=_stimulus("supply"))


def retry(scheduler: Scheduler, key: Key) -> bool:
    """Whether a task that failed may be tried again; this takes one of its retries."""
    task = scheduler.tasks[key]
    if not task.retries:
        return False
    task.retries -= 1
    return True


def fail(scheduler: Scheduler, key: Key, error: BaseException) -> None:
    """Make a task fail with `error`."""
    task = scheduler.tasks.get(key)
    if task is None or task.state in ("erred", "memory", "forgotten"):
        return
    message = error_message(error)
    recommendations = scheduler.transition(
        key,
        "erred",
        stimulus_id=_stimulus("fail"),
        cause=key,
        exception=message["exception"],
        traceback=message["traceback"],
        exception_text=message["exception_text"],
        traceback_text=message["traceback_text"],
        **({"worker": task.processing_on.address} if task.processing_on is not None else {}),
    )
    scheduler.transitions(recommendations, stimulus_id=_stimulus("fail"))


def failed_too_often(scheduler: Scheduler, key: Key) -> bool:
    """A task has lost a worker; whether it has done so more often than Dask allows (and then calls it the culprit)."""
    task = scheduler.tasks[key]
    task.suspicious += 1
    return bool(task.suspicious > scheduler.allowed_failures)


def error_text(scheduler: Scheduler, key: Key) -> str:
    """Why a task failed, in words: the error itself may need modules that only clients and workers have."""
    task = scheduler.tasks[key]
    return (task.exception_blame or task).exception_text or "for a reason unknown"


def pin(scheduler: Scheduler, keys: Iterable[Key]) -> None:
    """Keep tasks, and their results, whichever clients come and go."""
    scheduler.client_desires_keys(list(keys), _KEEPER)


def hold(scheduler: Scheduler, key: Key, client: str) -> bool:
    """Keep a task for a client, which is told of its end; False if the task is not there any more."""
    if key not in scheduler.tasks:
        return False
    scheduler.client_desires_keys([key], client)
    return True


def unpin(scheduler: Scheduler, keys: Iterable[Key]) -> None:
    """Undo :func:`pin`: what no client holds is forgotten."""
    if _KEEPER in scheduler.clients:
        scheduler.client_releases_keys([key for key in keys if key in scheduler.tasks], _KEEPER)


def cancel(scheduler: Scheduler, keys: Iterable[Key]) -> None:
    """Make Dask forget tasks, whoever wants them; those of them that run are told to stop."""
    scheduler.stimulus_cancel(
        list(keys), client=_KEEPER, force=True, reason="canceled", msg="the compute unit was canceled"
    )


def _stimulus(what: str) -> str:
    return f"dpilot-{what}-{time.time()}"


# -- on the scheduler: workers and clients


def worker_tags(scheduler: Scheduler, address: str) -> tuple[dict[str, str], int]:
    """What a worker's resources say of it (``{"pilot": id, "datacenter": label, ...}``), and its threads."""
    state = scheduler.workers[address]
    tags = dict(name.split(":", 1) for name in state.resources if ":" in name)
    return tags, state.nthreads


def memory_nbytes(scheduler: Scheduler, address: str) -> int | None:
    """How much memory a worker may use, in bytes; None: as much as it likes."""
    return scheduler.workers[address].memory_limit or None


def is_running(scheduler: Scheduler, address: str) -> bool:
    """Whether a worker takes tasks: it has started, and is neither paused nor retiring."""
    state = scheduler.workers.get(address)
    return state is not None and state in scheduler.running


def worker_of(scheduler: Scheduler, key: Key) -> str | None:
    """Address of the worker that a task was sent to; None if it is at none."""
    task = scheduler.tasks.get(key)
    return None if task is None or task.processing_on is None else task.processing_on.address


def is_full(scheduler: Scheduler, address: str) -> bool:
    """Whether a worker has a task for each of its threads, those not counted that have left theirs."""
    state = scheduler.workers.get(address)
    return state is not None and len(state.processing) - len(state.long_running) >= state.nthreads


def is_queueing(scheduler: Scheduler) -> bool:
    """Whether Dask keeps tasks back until workers have room."""
    return bool(scheduler.queued)


def on_seceded(scheduler: Scheduler, handler: Callable[[str], None]) -> None:
    """Call `handler` with the address of a worker on which a task has left its thread, to wait for others."""
    dask_handles = scheduler.stream_handlers["long-running"]

    def long_running(worker: str, **message: Any) -> None:
        dask_handles(worker=worker, **message)
        handler(worker)

    scheduler.stream_handlers["long-running"] = long_running


def is_connected(scheduler: Scheduler, client: str) -> bool:
    """Whether a client can be told something."""
    return client in scheduler.client_comms


def computed(message: Mapping[str, Any], bound: float) -> tuple[float, float] | tuple[None, None]:
    """When a task's function began and ended on its worker, by the message that tells of its end; None: it does not.

    Dask takes the clocks of scheduler and worker for as far apart as the way of a heartbeat was uneven: 0.1 s on a busy
    machine. But no task begins before it is `bound` to its worker, and what is told to have ended has ended.
    """
    began: float | None = None
    ended: float | None = None
    for span in message.get("startstops") or ():
        if span["action"] == "compute":
            began, ended = span["start"] if began is None else began, span["stop"]
    if began is None or ended is None:
        return None, None
    shift_s = min(max(0.0, bound - began), time.time() - ended)
    return began + shift_s, ended + shift_s


def is_status_change(message: Any) -> bool:
    """Whether an event of a worker's topic says that it began or ceased to take tasks."""
    return isinstance(message, dict) and message.get("action") == "worker-status-change"


def answer_calls(scheduler: Scheduler, handler: Callable[..., Any]) -> None:
    """Answer what clients and workers ask by :func:`call`, as ``handler(**message)``."""
    scheduler.handlers[HANDLER] = handler


def order(scheduler: Scheduler, address: str, message: Mapping[str, Any]) -> None:
    """Send a message to the units' plugin on a worker, in order with Dask's own messages to it."""
    scheduler.worker_send(address, {"op": HANDLER, **message})


def answer_reports(scheduler: Scheduler, handler: Callable[..., None]) -> None:
    """Take what workers send by :func:`report`, as ``handler(worker=address, **message)``."""
    scheduler.stream_handlers[HANDLER] = handler


def answer_cancels(scheduler: Scheduler, handler: Callable[[list[Key]], None]) -> None:
    """Call `handler` with the keys that a client cancels, of those which no other client wants.

    Dask itself would not cancel them: it believes that the plugin wants them.
    """
    dask_cancels = scheduler.stream_handlers["cancel-keys"]

    def cancel_keys(keys: list[Key], client: str, force: bool, **kwargs: Any) -> None:
        tasks = (scheduler.tasks.get(key) for key in keys)
        wanted = [(t.key, {c.client_key for c in t.who_wants or ()}) for t in tasks if t is not None]
        handler([key for key, clients in wanted if force or clients <= {client, _KEEPER}])
        dask_cancels(keys=keys, client=client, force=force, **kwargs)

    scheduler.stream_handlers["cancel-keys"] = cancel_keys


def send_event(scheduler: Scheduler, client: str, events: list[Any]) -> None:
    """Send to one client, in order with what Dask tells it of its futures."""
    scheduler.client_send(client, {"op": HANDLER, "events": events})


# -- in a client


def on_events(client: Client, handler: Callable[[list[Any]], None]) -> None:
    """Have ``handler(events)`` called, in the client's event loop, for what :func:`send_event` sends."""
    client._stream_handlers[HANDLER] = handler


def on_refused(client: Client, handler: Callable[[Collection[str], str], None]) -> None:
    """Have ``handler(keys, reason)`` called, in the client's event loop, for tasks that were canceled or have erred."""
    handlers: dict[str, Any] = client._stream_handlers
    dask_canceled, dask_erred = handlers["cancelled-keys"], handlers["task-erred"]

    def canceled(keys: Collection[str], reason: str | None = None, msg: str | None = None) -> None:
        dask_canceled(keys, reason, msg)
        handler(keys, reason or "canceled")

    def erred(key: str, **kwargs: Any) -> None:
        dask_erred(key, **kwargs)
        handler((key,), "its graph could not be read")

    handlers["cancelled-keys"] = canceled
    handlers["task-erred"] = erred


def on_lost(client: Client, handler: Callable[[], None]) -> None:
    """Have `handler` called, in the client's event loop, when the connection has ended.

    Dask would try to connect anew, but has then forgotten the client's futures: there is nothing to come back to.
    """
    task = client._handle_report_task

    async def give_up() -> None:
        handler()
        await client._close()

    def watch() -> None:
        client._reconnect = give_up  # type: ignore[method-assign]
        if task is None:
            handler()
        else:
            task.add_done_callback(lambda _: handler())

    call_in_loop(client, watch)


def address_of(client: Client) -> str:
    """Contact address of the client's scheduler."""
    assert client.scheduler is not None
    return str(client.scheduler.address)


def call_in_loop(client: Client, function: Callable[[], None]) -> None:
    """Have `function` called in the client's event loop, from any thread."""
    assert client.loop is not None
    client.loop.add_callback(function)


async def call_from_client(client: Client, **message: Any) -> Any:
    """Ask the plugin on the scheduler, in the client's event loop."""
    return await getattr(client.scheduler, HANDLER)(**message)


# -- on a worker


def call_from_worker(worker: Worker, **message: Any) -> Any:
    """Ask the plugin on the scheduler, from a task's thread."""
    return sync(worker.loop, getattr(worker.scheduler, HANDLER), **message)


def this_task() -> tuple[Worker, str]:
    """The worker that runs this thread's task, and the task's key."""
    worker = get_worker()
    return worker, str(worker.get_current_task())


def take_orders(worker: Worker, handler: Callable[..., None]) -> None:
    """Take what the scheduler sends by :func:`order`, as ``handler(**message)``, in the worker's event loop."""
    worker.stream_handlers[HANDLER] = handler


def _is_no_failure_of_a_unit(record: logging.LogRecord) -> bool:
    return not (str(record.msg).startswith("Compute Failed") and " run_unit(" in record.getMessage())


def log_no_failures() -> None:
    """Have Dask's workers in this process leave units that fail out of their log, which they would bury.

    Who submitted a unit is told its error.
    """
    logging.getLogger("distributed.worker").addFilter(_is_no_failure_of_a_unit)  # once, however often it is called


def answer_requests(worker: Worker, handler: Callable[..., Any]) -> None:
    """Answer what other processes ask of this worker, as ``handler(comm, **message)``, in the worker's event loop."""
    worker.handlers[HANDLER] = handler


def answer_gangs(worker: Worker, handler: Callable[..., Any]) -> None:
    """Have ``handler(comm, **message)`` called, in the event loop, when another worker sends a :data:`GANG` message."""
    worker.handlers[GANG] = handler


def in_loop(worker: Worker, work: Coroutine[Any, Any, _T]) -> Future[_T]:
    """Do something in a worker's event loop, from any thread."""
    return asyncio.run_coroutine_threadsafe(work, worker.loop.asyncio_loop)  # type: ignore[attr-defined]


def connection_args(worker: Worker) -> dict[str, Any]:
    """With what a worker connects to others: its certificates."""
    return dict(worker.connection_args)


def contact_of(worker: Worker) -> str:
    """Contact address of a worker, by which the scheduler calls it."""
    return str(worker.contact_address or worker.address)


def scratch_of(worker: Worker) -> str:
    """A directory of a worker's own, which is removed when it ends."""
    return str(worker.local_directory)


def scheduler_of(worker: Worker) -> str:
    """Contact address of a worker's scheduler."""
    return str(worker.scheduler.address)


def run_soon(worker: Worker, function: Callable[[], _T]) -> Future[_T]:
    """Have a function called in a thread in which tasks run, when one is free."""
    return worker.executors["default"].submit(function)


def report(worker: Worker, message: Mapping[str, Any]) -> None:
    """Send a message to the plugin on the scheduler, from any thread, before the task's own end."""
    worker.loop.add_callback(worker.batched_send, {"op": HANDLER, **message})


def takes_tasks(worker: Worker) -> bool:
    """Whether a worker begins tasks: it is neither paused, nor retires, nor ends."""
    return worker.status is Status.running


def n_threads(worker: Worker) -> int:
    """How many tasks a worker runs at once."""
    return int(worker.state.nthreads)


def has_seceded() -> bool:
    """Whether this thread of a worker has left the pool, by what it has run, and another one has taken its place."""
    return not getattr(pool_state, "proceed", True)


def call_soon(worker: Worker, function: Callable[..., None], *args: Any) -> None:
    """Have a function called in a worker's event loop, from any thread."""
    worker.loop.add_callback(function, *args)


def call_later(worker: Worker, seconds: float, function: Callable[[], None]) -> None:
    """Have a function called in a worker's event loop after so long; called in the loop."""
    worker.loop.call_later(seconds, function)


class Outcome(NamedTuple):
    """How a task ended that was run by :func:`carry_out`."""

    key: str
    message: dict[str, Any]  # what Dask's scheduler is told
    value: Any


def carry_out(
    worker: Worker, key: str, run_id: int, function: Callable[[], Any], attach: Callable[[Any], Any]
) -> Outcome:
    """Run a task that was sent past the worker's own Dask, in this thread, as Dask would.

    Parameters
    ----------
    worker : Worker
    key : str
    run_id : int
        Dask's number of the attempt.
    function : callable
        The work.
    attach : callable
        Gives, of what `function` has returned, what is to travel with the message of success (or None).
    """
    result: Any = _run_task(
        lambda _: function(),  # type: ignore[arg-type]
        {},
        worker.execution_state,
        key,
        worker.active_threads,
        worker.active_threads_lock,
        worker.scheduler_delay,
    )
    message = {"op": result["op"], "key": key, "run_id": run_id, "stimulus_id": f"{result['op']}-{result['stop']}"}
    if isinstance(result.get("actual_exception"), Reschedule):
        return Outcome(key, {"op": "reschedule", "key": key, "stimulus_id": _stimulus("reschedule")}, None)
    message["thread"] = result["thread"]
    message["startstops"] = [{"action": "compute", "start": result["start"], "stop": result["stop"]}]
    if result["op"] != "task-finished":
        names = "exception", "traceback", "exception_text", "traceback_text"
        return Outcome(key, {**message, "status": "error", **{name: result[name] for name in names}}, None)
    value = result["result"]
    message["nbytes"] = result["nbytes"]
    message["typename"] = typename(type(value))
    try:
        message["type"] = pickle.dumps(type(value))
    except Exception:  # of a class that is nowhere to be imported, as Dask does it
        message["type"] = pickle.dumps(message["typename"])
    attached = attach(value)
    message["metadata"] = {} if attached is None else {HANDLER: attached}
    return Outcome(key, message, value)


def deliver(worker: Worker, outcomes: Iterable[Outcome]) -> None:
    """Keep the results of :func:`carry_out` as Dask keeps those of its tasks, and tell the scheduler; in the loop."""
    # What the worker's Dask knows by now was taken back and sent anew: that attempt counts, not this one.
    fresh = [outcome for outcome in outcomes if outcome.key not in worker.state.tasks]
    values: dict[Key, object] = {
        outcome.key: outcome.value for outcome in fresh if outcome.message["op"] == "task-finished"
    }
    if values:
        worker.update_data(values)
    for outcome in fresh:
        worker.batched_send(outcome.message)


def come_again(worker: Worker) -> None:
    """Have a worker not wait for its threads when Dask closes it; its agent starts a new one in its place."""
    worker.comes_again = True  # type: ignore[attr-defined]
    worker.stream_handlers["close"] = partial(worker.close, executor_wait=False)


def was_freed(worker: Worker, key: str) -> bool:
    """Whether the scheduler took a task back that runs, or is about to run, in a thread of this worker."""
    task = worker.state.tasks.get(key)
    return task is None or task.state in ("cancelled", "released", "forgotten")


def let_go(worker: Worker, key: str) -> bool:
    """Have a worker forget a task that waits there for a thread. Returns whether it did: not if it has one."""
    task = worker.state.tasks.get(key)
    if task is None or task.state not in ("ready", "constrained", "waiting"):
        return False
    worker.handle_stimulus(FreeKeysEvent(keys=[key], stimulus_id=_stimulus("let-go")))
    return True


def is_executing(worker: Worker, key: str) -> bool:
    """Whether a task has a thread of this worker, or is about to get it."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state == "executing"


def attach_metadata(worker: Worker, key: str, value: Any) -> None:
    """Have `value` travel with the message of the task's success; the plugin finds it in the transition."""
    worker.state.tasks[key].metadata[HANDLER] = value
