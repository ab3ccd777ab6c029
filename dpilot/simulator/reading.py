"""Scenarios as people write them: YAML, JSON or TOML, checked field by field."""

from __future__ import annotations

import fnmatch
import json
import random
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dpilot.descriptions import did_you_mean
from dpilot.descriptions import parsers as p
from dpilot.descriptions.table import refusal
from dpilot.errors import DescriptionError, PilotError
from dpilot.placement import Distance
from dpilot.simulator.scenario import Data, Link, Pilot, Scenario, Store, Unit, Uplink
from dpilot.simulator.workloads import WORKLOADS

__all__ = ["FIELDS", "fields_of", "read_file", "read_mapping", "read_one"]

Parser = Callable[[Any], Any]
T = TypeVar("T")


# --- values -------------------------------------------------------------------------------------


def _seconds(value: Any) -> float:
    seconds = p.number(value)
    if seconds < 0:
        raise p.Wrong("is negative; write a number of seconds from 0 on")
    return seconds


def _positive(value: Any) -> float:
    number = p.number(value)
    if number <= 0:
        raise p.Wrong("is not positive; write a number above 0")
    return number


def _nbytes(value: Any) -> int:
    return 0 if value == 0 and not isinstance(value, bool) else p.nbytes(value)


def _bandwidth(value: Any) -> float:
    """Bytes per second: a number, or such as ``"100 MB/s"`` or ``"1 Gbit/s"``."""
    text = value.strip().removesuffix("/s") if isinstance(value, str) else value
    bits = re.fullmatch(r"(?P<number>.*?[kmgt]?)bit", text, re.IGNORECASE) if isinstance(text, str) else None
    try:
        return p.nbytes(f"{bits['number']}B") / 8 if bits else float(p.nbytes(text))
    except p.Wrong:
        raise p.Wrong("is not a bandwidth; write bytes per second, or such as '50 MB/s' or '1 Gbit/s'") from None


def _two_sites(value: Any) -> tuple[str, str]:
    labels = p.labels(value)
    if len(labels) != 2:
        raise p.Wrong("does not name two sites; write such as [eu, us]")
    return labels[0], labels[1]


def _distance(value: Any) -> Distance:
    names = {distance.name.lower().replace("_", "-"): distance for distance in Distance}
    if value not in names:
        raise p.Wrong(f"is no distance; write {', '.join(names)}")
    return names[value]


def _run_times(value: Any) -> Callable[[random.Random], list[float]]:
    """How long units run: gives a list to take in turn, or one draw."""
    if isinstance(value, Mapping):
        if len(value) != 1:
            raise p.Wrong("is no distribution; write such as {exponential: 10}")
        (name, given), *_ = value.items()
        numbers = [_seconds(number) for number in (given if isinstance(given, list) else [given])]
        draws: dict[str, tuple[int, Callable[..., float]]] = {
            "exponential": (1, lambda draw, mean: draw.expovariate(1 / mean) if mean else 0.0),
            "uniform": (2, lambda draw, least, most: draw.uniform(least, most)),
            "lognormal": (2, lambda draw, median, sigma: median * draw.lognormvariate(0.0, sigma)),
        }
        if name not in draws or len(numbers) != draws[name][0]:
            raise p.Wrong(
                "is no distribution; write {exponential: mean}, {uniform: [least, most]} "
                "or {lognormal: [median, sigma]}"
            )
        return lambda draw: [draws[name][1](draw, *numbers)]
    times = [_seconds(item) for item in value] if isinstance(value, list) else [_seconds(value)]
    if not times:
        raise p.Wrong("is empty; write at least one number of seconds")
    return lambda draw: times


# --- fields -------------------------------------------------------------------------------------

#: Field -> its parser, for each kind of object; what is required comes first, and is said with "!".
FIELDS: dict[str, dict[str, Parser]] = {
    "pilot": {
        "id!": p.label,
        "slots!": p.count,
        "datacenter": p.label,
        "machine": p.label,
        "workers": p.count,
        "submitted_s": _seconds,
        "arrives_s": _seconds,
        "walltime_s": _positive,
        "ends_s": _seconds,
        "delay_s": _seconds,
        "speed": _positive,
    },
    "store": {"id!": p.label, "datacenter": p.label, "machine": p.label},
    "data": {"id!": p.label, "nbytes!": _nbytes, "n_files": p.count, "replicas": p.labels},
    "unit": {
        "id!": p.label,
        "run_s!": _seconds,
        "inputs": p.labels,
        "outputs": p.labels,
        "slots": p.count,
        "kind": str,
        "priority": p.number,
        "submitted_s": _seconds,
        "datacenter": p.label,
        "machine": p.label,
        "affinity": p.one_of("prefer", "require"),
        "pilot": p.label,
    },
    "link": {
        "bandwidth!": _bandwidth,
        "latency_s": _seconds,
        "between": _two_sites,
        "distance": _distance,
        "from_s": _seconds,
    },
    "uplink": {"site!": p.label, "up!": _bandwidth, "down!": _bandwidth, "from_s": _seconds},
}

#: What a file may say besides: it stands for several objects, or for another field.
_FILE_FIELDS: dict[str, dict[str, Parser]] = {
    "pilot": {"count": p.count},
    "store": {"count": p.count},
    "data": {"count": p.count, "replicas_in_turn": p.labels},
    "unit": {"count": p.count, "run_s!": _run_times, "inputs_in_turn": p.labels, "every_s": _seconds},
    "link": {},
    "uplink": {},
}

_SETTINGS: dict[str, Parser] = {
    "name": p.label,
    "seed": p.count_or_0,
    "cache_nbytes": _nbytes,
    "files_at_once": p.count,
    "peers": p.flag,
    "lagging": _seconds,
}

_LISTS = {"pilots": "pilot", "stores": "store", "data": "data", "units": "unit", "links": "link", "uplinks": "uplink"}
_RENAMED = {"bandwidth": "bandwidth_bytes_per_s", "up": "up_bytes_per_s", "down": "down_bytes_per_s"}


def fields_of(kind: str, mapping: Any, where: str, more: Mapping[str, Parser] | None = None) -> dict[str, Any]:
    """The fields of one object, parsed.

    Parameters
    ----------
    kind : str
        Of :data:`FIELDS`, or one that only has the fields of `more`.
    mapping : object
        What was read.
    where : str
        What messages call it, such as ``"pilots[2]"``.
    more : mapping, optional
        Further fields, or other parsers.

    Raises
    ------
    DescriptionError
        It names the object, the field, its value and what to write instead.
    """
    marked = {**FIELDS.get(kind, {}), **(more or {})}
    table = {name.rstrip("!"): parse for name, parse in marked.items()}
    if not isinstance(mapping, Mapping):
        raise refusal(where, mapping, f"is no {kind}; write its fields: {', '.join(table)}")
    found = {}
    for name, value in mapping.items():
        if name not in table:
            raise DescriptionError(
                f"{where}: {name!r} is not a field of a {kind}; {did_you_mean(name, table)}",
                field=str(name),
                value=value,
            )
        if value is not None:
            found[name] = _parsed(where, name, value, table[name])
    for name in marked:
        if name.endswith("!") and name[:-1] not in found:
            raise DescriptionError(f"{where}: {name[:-1]} is missing; add it", field=name[:-1], value=None)
    return found


def _parsed(where: str, name: str, value: Any, parse: Parser) -> Any:
    try:
        return parse(value)
    except p.Wrong as wrong:
        error = refusal(name, wrong.value_or(value), str(wrong))
        raise DescriptionError(f"{where}: {error}", field=name, value=value) from None


def read_one(cls: type[T], fields: Mapping[str, Any]) -> T:
    """An object of a scenario, of its parsed fields."""
    return cls(**{_RENAMED.get(name, name): value for name, value in fields.items()})


# --- whole scenarios ----------------------------------------------------------------------------


def read_file(path: str | Path) -> Scenario:
    """Read a scenario from a file; see :meth:`Scenario.from_file`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DescriptionError(f"{path} cannot be read: {error}", field=None, value=str(path)) from error
    if path.suffix == ".jsonl":
        return Scenario.from_records(path).scenario
    try:
        if path.suffix == ".toml":
            content = tomllib.loads(text)
        elif path.suffix == ".json":
            content = json.loads(text)
        else:
            content = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise DescriptionError(f"{path} cannot be understood: {error}", field=None, value=str(path)) from error
    try:
        return read_mapping({"name": path.stem, **content} if isinstance(content, Mapping) else content)
    except PilotError as error:
        error.args = (f"{path}: {error}",)
        raise


def read_mapping(mapping: Any) -> Scenario:
    """Read a scenario; see :meth:`Scenario.from_mapping`."""
    known = [*_SETTINGS, *_LISTS, "workload"]
    if not isinstance(mapping, Mapping):
        raise refusal("the scenario", mapping, f"is no mapping; write its fields: {', '.join(known)}")
    for name in mapping:
        if name not in known:
            raise DescriptionError(
                f"{name!r} is not a field of a scenario; {did_you_mean(name, known)}",
                field=str(name),
                value=mapping[name],
            )
    settings = {
        name: _parsed("the scenario", name, mapping[name], _SETTINGS[name]) for name in _SETTINGS if name in mapping
    }
    draw = random.Random(f"scenario/{settings.get('seed', 0)}")
    lists: dict[str, Any] = {}
    for name, kind in _LISTS.items():
        if name not in mapping:
            continue
        if not isinstance(mapping[name], list):
            raise refusal(name, mapping[name], f"is no list; write one {kind} behind the other")
        ids = [data.id for data in lists.get("data", ())]
        lists[name] = tuple(
            read_one(_CLASSES[kind], fields)
            for number, item in enumerate(mapping[name])
            for fields in _several(kind, fields_of(kind, item, f"{name}[{number}]", _FILE_FIELDS[kind]), draw, ids)
        )
    if "workload" in mapping:
        return _workload(mapping["workload"]).replace(**settings, **lists)
    return Scenario(**{"pilots": (), "units": (), **lists}, **settings)


_CLASSES: dict[str, type[Any]] = {
    "pilot": Pilot, "store": Store, "data": Data, "unit": Unit, "link": Link, "uplink": Uplink,
}  # fmt: skip


def _workload(value: Any) -> Scenario:
    given = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = given.pop("name", None)
    if name not in WORKLOADS:
        raise DescriptionError(
            f"workload {name!r} is unknown; {did_you_mean(name, WORKLOADS)}", field="workload", value=name
        )
    try:
        return WORKLOADS[name](**given)
    except TypeError as error:
        raise DescriptionError(f"workload {name}: {error}", field="workload", value=value) from error


def _several(kind: str, fields: dict[str, Any], draw: random.Random, ids: list[str]) -> Iterable[dict[str, Any]]:
    """The objects that one entry of a file stands for."""
    count = fields.pop("count", None)
    every_s = fields.pop("every_s", 0.0)
    stores = fields.pop("replicas_in_turn", ())
    globs = fields.pop("inputs_in_turn", ())
    inputs = [id for glob in globs for id in (fnmatch.filter(ids, glob) or [glob])]
    for number in range(count or 1):
        one = {name: _numbered(value, number) for name, value in fields.items()}
        if count is not None and one.get("id") == fields.get("id"):
            one["id"] = f"{one['id']}-{number}"
        if stores:
            one["replicas"] = (stores[number % len(stores)],)
        if inputs:
            one["inputs"] = (*one.get("inputs", ()), inputs[number % len(inputs)])
        if kind == "unit":
            times = fields["run_s"](draw)
            one["run_s"] = times[number % len(times)]
            one["submitted_s"] = one.get("submitted_s", 0.0) + number * every_s
        yield one


def _numbered(value: Any, number: int) -> Any:
    """``{i}`` in a name stands for the number of the object."""
    if isinstance(value, str):
        return value.replace("{i}", str(number))
    if isinstance(value, tuple):
        return tuple(_numbered(item, number) for item in value)
    return value
