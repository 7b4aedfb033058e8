"""Files are written whole or not at all, and the same content is always the same bytes."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from refusal import StorageError
from refusal.core.storage import (
    cache_root,
    file_sha256,
    write_json,
    write_jsonl,
    write_tensors,
    write_toml,
)

Writer = Callable[[Path], None]
WRITERS: dict[str, Writer] = {
    "json": lambda path: write_json(path, {"a": 1}),
    "jsonl": lambda path: write_jsonl(path, [{"a": 1}]),
    "toml": lambda path: write_toml(path, {"a": 1}),
    "tensors": lambda path: write_tensors(path, {"a": torch.ones(3)}),
}
each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=list(WRITERS))


def no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@each_writer
@pytest.mark.parametrize("step", ["write_text", "write_bytes", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Writer, step: str
) -> None:
    file = tmp_path / "file"
    file.write_text("old", encoding="utf-8")
    with monkeypatch.context() as patch:
        if step == "replace":
            patch.setattr(Path, "replace", no_space)
        else:
            patch.setattr(Path, "write_text", no_space)
            patch.setattr(Path, "write_bytes", no_space)
        with pytest.raises(StorageError, match=r"No space left on device.*--out"):
            write(file)
    assert file.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [file]


@each_writer
def test_an_interruption_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Writer
) -> None:
    def interrupt(self: Path, target: Path) -> None:
        assert list(tmp_path.glob(".file.*")) == [
            self
        ]  # written beside the target, so that renaming is one step
        assert self.stat().st_size > 0
        raise KeyboardInterrupt

    file = tmp_path / "file"
    file.write_text("old", encoding="utf-8")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", interrupt)
        write(file)
    assert file.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [file]


@each_writer
def test_folders_are_made_and_a_file_in_their_place_is_one_message(
    tmp_path: Path, write: Writer
) -> None:
    write(tmp_path / "a" / "b" / "file")
    assert (tmp_path / "a" / "b" / "file").stat().st_mode & 0o777 == 0o644
    with pytest.raises(StorageError, match="could not be written"):
        write(tmp_path / "a" / "b" / "file" / "c")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_nan(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": value})
    with pytest.raises(ValueError, match="JSON"):
        write_jsonl(tmp_path / "a.jsonl", [{"x": value}])
    assert list(tmp_path.iterdir()) == []


def test_text_is_utf8_and_one_json_value_a_line(tmp_path: Path) -> None:
    rows = [{"text": "naïve\n\u2028日本"}, {"text": ""}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    lines = (tmp_path / "a.jsonl").read_bytes().decode("utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows
    assert lines[-1] == ""
    write_json(tmp_path / "a.json", rows)
    assert "日本" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_safetensors_are_read_back_by_the_library(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(7).bfloat16(),
        "view": torch.randn(4, 6).T,
        "empty": torch.zeros(0, 3),
        "whole": (rows := torch.randn(2, 3)),
        "part of it": rows[0],
    }
    metadata = {"name": "mödel", "n": "1"}
    write_tensors(tmp_path / "t.safetensors", tensors, metadata)
    back = load_file(tmp_path / "t.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    assert set(back) == set(tensors)
    with safe_open(str(tmp_path / "t.safetensors"), framework="pt") as file:
        assert file.metadata() == metadata
    write_tensors(tmp_path / "bare.safetensors", tensors)
    assert set(load_file(tmp_path / "bare.safetensors")) == set(tensors)


@pytest.mark.parametrize("length", range(9))
def test_tensors_stay_aligned_whatever_the_metadata(tmp_path: Path, length: int) -> None:
    write_tensors(tmp_path / "t.safetensors", {"a": torch.ones(2)}, {"note": "x" * length})
    assert int.from_bytes((tmp_path / "t.safetensors").read_bytes()[:8], "little") % 8 == 0
    assert torch.equal(load_file(tmp_path / "t.safetensors")["a"], torch.ones(2))


def test_the_same_tensors_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """Stages are told apart by the hashes of their files."""
    code = (
        "import sys, torch; from pathlib import Path; from refusal.core.storage import write_tensors;"
        "write_tensors(Path(sys.argv[1]), {'b': torch.ones(2), 'a': torch.zeros(3)}, {str(i): 'x' "
        "for i in range(9)})"
    )
    for name in ("first", "second"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=True)
    assert file_sha256(tmp_path / "first") == file_sha256(tmp_path / "second")


def test_the_cache_can_be_put_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSAL_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("REFUSAL_CACHE")
    assert cache_root().name == "refusal"
