from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpilot.data.names import check_name, check_names, check_pattern, collect, is_within
from dpilot.errors import ManifestError, StagingError
from tests.data.conftest import ODD_NAMES, write_files

UNSAFE = (
    "",
    "/",
    "/etc/passwd",
    "//a",
    "..",
    "../a",
    "a/../../b",
    "a/..",
    ".",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "nul\0byte",
    "lone surrogate \udc80",
    ".dpilot-manifest.json",
    "sub/.dpilot-manifest.json",
    ".dpilot-store.json",
    ".dpilot-tmp",
    ".dpilot-tmp-1/x",
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_legal(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", UNSAFE)
def test_unsafe_names_are_refused(name: str) -> None:
    with pytest.raises(ManifestError) as caught:
        check_name(name)
    assert repr(name) in str(caught.value)
    with pytest.raises(ManifestError):
        check_pattern(name)


@pytest.mark.parametrize("name", [None, 1, b"a", Path("a")])
def test_a_name_is_a_string(name: object) -> None:
    with pytest.raises(ManifestError, match="is not a string"):
        check_name(name)  # type: ignore[arg-type]


PARTS = st.sampled_from(["..", ".", "", "a", "b c", "\n", "*", "~", "\\", "\0", "\udcff", ".dpilot-tmp1", "ü"])


@given(st.one_of(st.lists(PARTS, max_size=6).map("/".join), st.text(max_size=20)))
def test_no_accepted_name_escapes(name: str) -> None:
    """Whatever is accepted names something below its root, which a file system and UTF-8 can hold."""
    try:
        check_name(name)
    except ManifestError:
        return
    root = "/root/of/store"
    joined = f"{root}/{name}"
    assert os.path.normpath(joined) == joined
    assert joined.startswith(root + "/")
    assert name.encode().decode() == name
    assert "\0" not in name


def test_names_must_fit_into_one_tree() -> None:
    check_names(["a", "b/a", "b/c", "bc"])
    with pytest.raises(ManifestError, match="twice"):
        check_names(["a", "a"])
    with pytest.raises(ManifestError, match="'b' is also the directory of 'b/c/d'"):
        check_names(["b/c/d", "b"])


def names(root: Path, *patterns: str, exclude: tuple[str, ...] = ()) -> list[str]:
    found = collect(root, patterns, exclude)
    assert all(path == root / name for name, path in found.items())
    return list(found)


def test_globs(tmp_path: Path) -> None:
    write_files(tmp_path, dict.fromkeys(["a.out", "b.out", "[x].out", "sub/c.out", "sub/deep/d.out", ".hidden"], b""))
    assert names(tmp_path, "*.out") == ["[x].out", "a.out", "b.out"]
    assert names(tmp_path, "?.out", "a*") == ["a.out", "b.out"]
    assert names(tmp_path, "[!a].out") == ["b.out"]
    assert names(tmp_path, "[[]x].out") == ["[x].out"]
    assert names(tmp_path, "*/*") == ["sub/c.out"]
    assert names(tmp_path, "**/*.out") == ["[x].out", "a.out", "b.out", "sub/c.out", "sub/deep/d.out"]
    assert names(tmp_path, "sub/**") == ["sub/c.out", "sub/deep/d.out"]
    assert names(tmp_path, "**/**/d.out") == ["sub/deep/d.out"]
    assert names(tmp_path, ".h*") == [".hidden"]
    assert names(tmp_path, "*.out", exclude=("a.out",)) == ["[x].out", "b.out"]


def test_odd_names_are_collected(tmp_path: Path) -> None:
    write_files(tmp_path, dict.fromkeys(ODD_NAMES, b""))
    assert set(names(tmp_path, "*", ".*", "**/.hidden")) == set(ODD_NAMES)


def test_a_pattern_without_a_match_says_what_there_is(tmp_path: Path) -> None:
    write_files(tmp_path, {"result.txt": b"", "sub/x": b""})
    with pytest.raises(StagingError, match=r"no file matches '\*\.out'.*'result.txt', 'sub/'"):
        collect(tmp_path, ["*.txt", "*.out"])
    with pytest.raises(StagingError, match="no file matches 'sub'"):
        collect(tmp_path, ["sub"])  # a directory is no file
    with pytest.raises(StagingError, match="no file matches"):
        collect(tmp_path / "missing", ["*"])


def test_special_files_and_what_dpilot_keeps_are_passed_over(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": b"", ".dpilot-tmp-1": b"", "sub/.dpilot-manifest.json": b""})
    os.mkfifo(tmp_path / "fifo")
    assert names(tmp_path, "**", "[.a]*") == ["a"]


def test_links_within_are_followed_and_links_out_are_refused(tmp_path: Path) -> None:
    outside = write_files(tmp_path / "outside", {"secret": b"s"})
    root = write_files(tmp_path / "root", {"a": b"", "sub/b": b""})
    (root / "inner").symlink_to("sub/b")
    (root / "circle").symlink_to(".")
    (root / "broken").symlink_to("nowhere")
    assert names(root, "**") == ["a", "inner", "sub/b"]
    (root / "file-out").symlink_to(outside / "secret")
    (root / "directory-out").symlink_to(outside)
    for pattern in ("file-out", "file*", "**", "directory-out/secret", "*/secret"):
        with pytest.raises(StagingError, match=f"is a link to {outside / 'secret'}, outside of it"):
            collect(root, [pattern])
    with pytest.raises(StagingError, match="no file matches"):  # ** does not follow links
        collect(root, ["**/secret"])
    assert names(root, "**", exclude=("file-out",)) == ["a", "inner", "sub/b"]


def test_a_root_that_is_itself_a_link(tmp_path: Path) -> None:
    write_files(tmp_path / "real", {"a": b""})
    (tmp_path / "link").symlink_to("real")
    assert names(tmp_path / "link", "*") == ["a"]
    assert is_within(tmp_path / "link" / "a", tmp_path / "real")
    assert not is_within(tmp_path / "real-not", tmp_path / "real")
