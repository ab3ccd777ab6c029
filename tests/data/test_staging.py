from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dpilot.data import Store, stage_in, stage_out
from dpilot.errors import ChecksumError, ManifestError, StagingError, StoreError, StoreFullError
from tests.data.conftest import ODD_NAMES, MakeStore, content, left, plant, put, read_files, write_files

MANIFEST = ".dpilot-manifest.json"


def test_files_are_linked_where_they_are_visible_else_copied(store: Store, tmp_path: Path) -> None:
    files = {"a": b"1", "sub/b c": b"22", "empty": b""}
    manifest = put(store, "du-1", tmp_path / "in", files)
    local = store.root.protocol == "file"
    assert stage_in(manifest, store, tmp_path / "linked", link=True) == (0 if local else 3)
    assert stage_in(manifest, store, tmp_path / "copied", link=False) == 3
    for directory, linked in (("linked", local), ("copied", False)):
        assert read_files(tmp_path / directory) == files
        assert all((tmp_path / directory / name).is_symlink() == linked for name in files)


def test_odd_names_are_linked(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    files = {name: name.encode() for name in ODD_NAMES}
    assert stage_in(put(store, "du-1", tmp_path / "in", files), store, tmp_path / "box", link=True) == 0
    assert read_files(tmp_path / "box") == files


def test_a_program_that_replaces_its_input_leaves_the_store_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    manifest = put(store, "du-1", tmp_path / "in", {"a": b"before\n"})
    stage_in(manifest, store, tmp_path / "box", link=True)
    subprocess.run(["sed", "-i", "s/before/after/", "a"], cwd=tmp_path / "box", check=True)
    assert (tmp_path / "box" / "a").read_bytes() == b"after\n"
    assert content(store, "du-1", "a") == b"before\n"


def test_some_files_only(store: Store, tmp_path: Path) -> None:
    manifest = put(store, "du-1", tmp_path / "in", {"a": b"1", "b": b"2"})
    stage_in(manifest, store, tmp_path / "box", link=True, names=["b"])
    assert read_files(tmp_path / "box") == {"b": b"2"}


@pytest.mark.parametrize("link", [True, False])
def test_a_name_that_is_there_is_refused(store: Store, tmp_path: Path, link: bool) -> None:
    one = put(store, "du-1", tmp_path / "1", {"a": b"1", "b": b"2"})
    two = put(store, "du-2", tmp_path / "2", {"0": b"", "b": b"other"})
    box = tmp_path / "box"
    stage_in(one, store, box, link=link)
    with pytest.raises(StagingError, match=r"'b' of data unit du-2 cannot be staged into .*/box"):
        stage_in(two, store, box, link=link)
    assert read_files(box) == {"a": b"1", "b": b"2"}
    (box / "0").symlink_to("nowhere")  # what dangles is there, too
    with pytest.raises(StagingError, match="'0'"):
        stage_in(two, store, box, link=link, names=["0"])


@pytest.mark.parametrize("link", [True, False])
def test_links_in_the_sandbox_do_not_lead_out(store: Store, tmp_path: Path, link: bool) -> None:
    manifest = put(store, "du-1", tmp_path / "in", {"sub/a": b"1"})
    (tmp_path / "outside").mkdir()
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(StagingError, match="leads out of"):
        stage_in(manifest, store, tmp_path / "box", link=link)
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("link", [True, False])
def test_inputs_are_checked_and_nothing_is_left(store: Store, tmp_path: Path, link: bool) -> None:
    manifest = put(store, "du-1", tmp_path / "in", {"a": b"1", "sub/b": b"222"})
    plant(store, "du-1", "sub/b", b"22")
    with pytest.raises(ChecksumError, match="has 2 bytes, but its manifest says 3"):
        stage_in(manifest, store, tmp_path / "box", link=link)
    assert list((tmp_path / "box").iterdir()) == []
    store.root.child("du-1").child("sub/b").remove()
    with pytest.raises((ChecksumError, StoreError), match=r"is not there|there is no such file"):
        stage_in(manifest, store, tmp_path / "box", link=link)


def test_a_store_on_another_machine_is_not_linked_to(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    manifest = put(store, "du-1", tmp_path / "in", {"a": b"1"})
    (tmp_path / "store").rename(tmp_path / "moved")
    write_files(tmp_path / "store" / "du-1", {"a": b"another's"})
    with pytest.raises(StoreError, match="not visible here"):
        stage_in(manifest, store, tmp_path / "box", link=True)


def test_outputs_are_collected(store: Store, tmp_path: Path) -> None:
    box = write_files(tmp_path / "box", {"a.out": b"1", "sub/b.out": b"2", "log": b"3", "-x y\n": b""})
    manifest = stage_out(box, ["**/*.out", "-*"], store, "du-1", "cu-1")
    assert manifest.names == ("-x y\n", "a.out", "sub/b.out")
    assert manifest.producer == "cu-1"
    assert {entry.producer for entry in manifest.files} == {"cu-1"}
    assert store.read_manifest("du-1") == manifest
    assert content(store, "du-1", "sub/b.out") == b"2"
    assert read_files(box)["a.out"] == b"1"  # and stay in the sandbox


def test_two_producers_share_a_data_unit_but_not_a_name(store: Store, tmp_path: Path) -> None:
    box = write_files(tmp_path / "box", {"a": b"1", "b": b"1", "c": b"1"})
    stage_out(box, ["a"], store, "du-1", "cu-1")
    both = stage_out(box, ["b"], store, "du-1", "cu-2")
    assert both.names == ("a", "b")
    with pytest.raises(StagingError, match="has a file 'a' already, from cu-1"):
        stage_out(box, ["[ac]"], store, "du-1", "cu-2")
    assert store.read_manifest("du-1") == both
    assert left(store) == {"du-1/a", "du-1/b", f"du-1/{MANIFEST}"}


def test_a_unit_that_runs_again_replaces_its_outputs(store: Store, tmp_path: Path) -> None:
    first = write_files(tmp_path / "1", {"a.out": b"1", "b.out": b"1"})
    second = write_files(tmp_path / "2", {"a.out": b"22"})
    stage_out(first, ["*.out"], store, "du-1", "cu-1")
    again = stage_out(second, ["*.out"], store, "du-1", "cu-1")
    assert again.names == ("a.out",)
    assert content(store, "du-1", "a.out") == b"22"
    assert left(store) == {"du-1/a.out", f"du-1/{MANIFEST}"}


def test_missing_outputs_and_unsafe_patterns_collect_nothing(store: Store, tmp_path: Path) -> None:
    box = write_files(tmp_path / "box", {"a": b"1"})
    with pytest.raises(StagingError, match="no file matches 'b'"):
        stage_out(box, ["a", "b"], store, "du-1", "cu-1")
    with pytest.raises(ManifestError, match="would escape"):
        stage_out(box, ["../*"], store, "du-1", "cu-1")
    assert left(store) == set()


def test_linked_inputs_are_no_outputs(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    given = put(store, "du-1", tmp_path / "in", {"input.txt": b"1"})
    box = tmp_path / "box"
    stage_in(given, store, box, link=True)
    write_files(box, {"output.txt": b"2"})
    with pytest.raises(StagingError, match=r"'input\.txt' .* outside of it"):
        stage_out(box, ["*.txt"], store, "du-2", "cu-1")
    assert stage_out(box, ["*.txt"], store, "du-2", "cu-1", exclude=given.names).names == ("output.txt",)


def test_outputs_must_fit(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(nbytes_limit=3)
    box = write_files(tmp_path / "box", {"a": b"333", "b": b"4444"})
    stage_out(box, ["a"], store, "du-1", "cu-1")
    stage_out(box, ["a"], store, "du-1", "cu-1")  # what it replaces makes room
    with pytest.raises(StoreFullError):
        stage_out(box, ["b"], store, "du-2", "cu-2")
    assert store.list_units() == ["du-1"]
