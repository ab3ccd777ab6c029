from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpilot.data import FileEntry, Hasher, Manifest
from dpilot.errors import ManifestError
from tests.data.conftest import ODD_NAMES
from tests.data.test_names import PARTS, UNSAFE

CHECKSUM = "xxh3:" + "0123456789abcdef" * 2


def manifest(*names: str, **kwargs: Any) -> Manifest:
    return Manifest("du-1", tuple(FileEntry(name, 1, CHECKSUM) for name in names), 1.5, **kwargs)


def test_lookup() -> None:
    found = Manifest("du-1", (FileEntry("b", 2), FileEntry("a", 3, CHECKSUM, "cu-1")), 1.0, "cu-1")
    assert found.names == ("a", "b")
    assert list(found) == ["a", "b"]
    assert len(found) == 2
    assert found.nbytes == 5
    assert found["b"] == FileEntry("b", 2)
    assert "a" in found
    assert "c" not in found
    with pytest.raises(ManifestError, match="du-1 has no file 'c'"):
        found["c"]
    with pytest.raises(FrozenInstanceError):
        found.du = "du-2"  # type: ignore[misc]


def test_order_does_not_matter() -> None:
    assert manifest("a", "b") == manifest("b", "a")
    assert hash(manifest("a", "b")) == hash(manifest("b", "a"))


def test_merged_and_without() -> None:
    old = Manifest("du-1", (FileEntry("a", 1), FileEntry("b", 1)), 1.0)
    new = Manifest("du-1", (FileEntry("b", 9, None, "cu-1"), FileEntry("c", 1, None, "cu-1")), 2.0, "cu-1")
    both = old.merged(new)
    assert both.names == ("a", "b", "c")
    assert both["b"].nbytes == 9
    assert (both.created, both.producer) == (2.0, "cu-1")
    assert both.without(["a", "b"]).names == ("c",)
    with pytest.raises(ManifestError, match="no file 'x'"):
        both.without(["x"])
    with pytest.raises(ManifestError, match="cannot be merged"):
        old.merged(Manifest("du-2", (), 1.0))
    with pytest.raises(ManifestError, match="is also the directory"):
        old.merged(manifest("a/b"))


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_names_are_refused(name: str) -> None:
    with pytest.raises(ManifestError):
        FileEntry(name, 0)


@pytest.mark.parametrize("nbytes", [-1, 1.0, True, "1", None, 2**63, 10**400])
def test_sizes_are_checked(nbytes: Any) -> None:
    with pytest.raises(ManifestError, match="is not a number of bytes"):
        FileEntry("a", nbytes)


@pytest.mark.parametrize(
    "checksum", ["", "abc", "xxh3:", "md5:" + "0" * 32, "xxh3:" + "g" * 32, CHECKSUM + "\n", b"xxh3", 1]
)
def test_checksums_are_checked(checksum: Any) -> None:
    with pytest.raises(ManifestError, match="checksum"):
        FileEntry("a", 0, checksum)


@pytest.mark.parametrize("du", ["", "a/b", "..", ".hidden", "-x", "du 1", "du\n", None, 1])
def test_the_id_is_one_plain_name(du: Any) -> None:
    with pytest.raises(ManifestError, match="data unit id"):
        Manifest(du, (), 0.0)


@pytest.mark.parametrize("created", [None, "now", True, float("nan"), float("inf"), -1.0, -(10**400)])
def test_created_is_checked(created: Any) -> None:
    with pytest.raises(ManifestError, match="is not a time"):
        Manifest("du-1", (), created)


def test_files_and_producer_are_checked() -> None:
    with pytest.raises(ManifestError, match="occurs twice"):
        manifest("a", "a")
    with pytest.raises(ManifestError, match="is not a FileEntry"):
        Manifest("du-1", ("a",), 0.0)  # type: ignore[arg-type]
    with pytest.raises(ManifestError, match="producer 3"):
        Manifest("du-1", (), 0.0, 3)  # type: ignore[arg-type]


ENTRIES = st.builds(
    FileEntry,
    st.sampled_from(ODD_NAMES),
    st.integers(0, 2**63 - 1),
    st.none() | st.binary().map(lambda data: _checksum(data)),
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)


def _checksum(data: bytes) -> str:
    hasher = Hasher()
    hasher.update(data)
    return hasher.hexdigest()


@given(st.lists(ENTRIES, unique_by=lambda e: e.name), st.floats(0, 1e12), st.none() | st.just("cu-1"))
def test_json_and_pickle_round_trip(entries: list[FileEntry], created: float, producer: str | None) -> None:
    before = Manifest("du-1", tuple(entries), created, producer)
    assert Manifest.from_json(before.to_json()) == before
    assert Manifest.from_json(before.to_json().encode()) == before
    again = pickle.loads(pickle.dumps(before))
    assert again == before
    assert again.names == before.names


GOOD = {"version": 1, "du": "du-1", "created": 0.0, "producer": None, "files": [{"name": "a", "nbytes": 1}]}
HOSTILE = {
    "not JSON": "{",
    "empty": "",
    "not UTF-8": b"\xff\xfe\xff",
    "nested beyond measure": "[" * 100_000,
    "a list": "[]",
    "null": "null",
    "a string": '"x"',
    "no version": json.dumps({**GOOD, "version": None}),
    "of a later version": json.dumps({**GOOD, "version": 2}),
    "lacks files": json.dumps({k: v for k, v in GOOD.items() if k != "files"}),
    "lacks the id": json.dumps({k: v for k, v in GOOD.items() if k != "du"}),
    "files are an object": json.dumps({**GOOD, "files": {"name": "a"}}),
    "a file is a string": json.dumps({**GOOD, "files": ["a"]}),
    "a file lacks its size": json.dumps({**GOOD, "files": [{"name": "a"}]}),
    "a size is NaN": '{"version":1,"du":"du-1","created":0,"files":[{"name":"a","nbytes":NaN}]}',
    "created is huge": '{"version":1,"du":"du-1","created":1e999,"files":[]}',
    "a number of 5,000 digits": '{"version":1,"du":"du-1","created":' + "9" * 5000 + ',"files":[]}',
    "a number of 1,000 digits as a size": '{"version":1,"du":"d","created":0,"files":[{"name":"a","nbytes":'
    + "9" * 1000
    + "}]}",
    "the same file twice": json.dumps({**GOOD, "files": GOOD["files"] * 2}),
    "a lone surrogate": '{"version":1,"du":"du-1","created":0,"files":[{"name":"\\ud800","nbytes":1}]}',
}


def test_what_the_hostile_ones_are_made_from_is_fine() -> None:
    assert Manifest.from_json(json.dumps(GOOD)).names == ("a",)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_json(text)


@given(st.lists(PARTS, min_size=1, max_size=5).map("/".join))
def test_planted_escapes_are_refused(name: str) -> None:
    planted = json.dumps({**GOOD, "files": [{"name": name, "nbytes": 1}]})
    try:
        found = Manifest.from_json(planted)
    except ManifestError:
        return
    assert found.names == (name,)
    assert not {"..", ".", ""} & set(name.split("/"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(GOOD, json_values)))
def test_any_json_is_a_manifest_or_a_manifest_error(document: dict[str, Any]) -> None:
    try:
        found = Manifest.from_json(json.dumps({**GOOD, **document}))
    except ManifestError:
        return
    assert Manifest.from_json(found.to_json()) == found


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_the_checksum_does_not_depend_on_the_pieces(pieces: list[bytes]) -> None:
    hasher = Hasher()
    for piece in pieces:
        hasher.update(piece)
    assert hasher.hexdigest() == _checksum(b"".join(pieces))


def test_the_checksum_is_the_published_xxh3() -> None:
    assert _checksum(b"") == "xxh3:99aa06d3014798d86001c324468d497f"  # XXH3_128bits of nothing, seed 0
