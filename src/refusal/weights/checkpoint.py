"""A checkpoint folder, read tensor by tensor.

A safetensors file is the length of its header (8 bytes), the header (JSON: dtype, shape and place
of every tensor) and the data. It is read with plain reads rather than mapped into memory, so that a
process holds what it asked for and no more, and tensors lie where torch wants them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refusal.core.errors import ModelLoadError, QuantisedModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
READ = {**FLOATS, "I64": torch.int64}  # tables of indices (DeepSeek-V4's), which are no weights
PIECE = 2**24  # bytes copied at once
# Other copies of the weights, which an edited folder must not carry along.
WEIGHT_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".index.json",
)


@dataclass(frozen=True)
class Entry:
    """One tensor of a shard: ``start`` and ``end`` are bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return self.end - self.start

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its tensors in the order of their data, and its metadata."""

    path: Path
    entries: tuple[Entry, ...]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A folder with ``config.json`` and safetensors.

    Attributes:
        config: what ``config.json`` holds.
        index: what ``model.safetensors.index.json`` holds; ``None`` for a single file.
    """

    folder: Path
    config: dict[str, Any]
    index: dict[str, Any] | None
    shards: tuple[Shard, ...]

    @property
    def entries(self) -> dict[str, Entry]:
        """Every tensor by name."""
        return {entry.name: entry for shard in self.shards for entry in shard.entries}

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            QuantisedModelError: neither floating-point numbers nor indices.
        """
        for shard in self.shards:
            for entry in shard.entries:
                if entry.name == name:
                    with shard.path.open("rb") as file:
                        return read_tensor(file, entry)
        raise KeyError(name)

    def other_files(self) -> list[Path]:
        """What is not weights, config or model card: tokenizer, template, generation config,
        processor.
        """
        found = []
        for path in sorted(self.folder.iterdir()):
            written = path.name in ("config.json", "README.md")
            weights = path.name.endswith(WEIGHT_SUFFIXES)
            if path.is_file() and not (written or weights or path.name.startswith(".")):
                found.append(path)
        return found


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the config, the index and every shard's header.

    Raises:
        ModelLoadError: a file is missing or damaged, or there are no safetensors.
    """
    if not (folder / "config.json").is_file():
        raise ModelLoadError(
            f"{folder} holds no config.json. Give a folder in transformers' format."
        )
    config = _json(folder / "config.json")
    if (folder / INDEX).is_file():
        index = _json(folder / INDEX)
        names = sorted(set(index.get("weight_map", {}).values()))
    elif (folder / SINGLE).is_file():
        index, names = None, [SINGLE]
    else:
        raise ModelLoadError(
            f"{folder} holds no {SINGLE} and no {INDEX}. Only safetensors can be streamed: leave "
            "--stream out, or save the model as safetensors first."
        )
    checkpoint = Checkpoint(
        folder, config, index, tuple(read_header(folder / name) for name in names)
    )
    if index is not None and (lost := set(index["weight_map"]) - set(checkpoint.entries)):
        raise ModelLoadError(
            f"{INDEX} names tensors that no shard holds, such as {min(lost)}. Fetch the model "
            "again."
        )
    return checkpoint


def read_header(path: Path) -> Shard:
    """The table of contents of a safetensors file.

    Raises:
        ModelLoadError: missing or damaged.
    """
    try:
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 8 < start <= size:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(start - 8))
        metadata = header.pop("__metadata__", {})
        entries = []
        for name, info in header.items():
            begin, end = (start + offset for offset in info["data_offsets"])
            entries.append(Entry(name, info["dtype"], tuple(info["shape"]), begin, end))
        if max((entry.end for entry in entries), default=start) != size:
            raise ValueError("its data is cut off")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelLoadError(
            f"{path} cannot be read as safetensors ({error}). Fetch the model again."
        ) from error
    return Shard(path, tuple(sorted(entries, key=lambda entry: entry.start)), metadata)


def header_bytes(
    entries: list[tuple[str, str, tuple[int, ...], int]], metadata: dict[str, str]
) -> bytes:
    """The start of a safetensors file whose tensors (name, dtype, shape, bytes) follow in this
    order.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, dtype, shape, nbytes in entries:
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    return len(text).to_bytes(8, "little") + text


def read_tensor(file: BufferedReader, entry: Entry) -> Tensor:
    """The tensor of an entry, in memory of its own."""
    if entry.dtype not in READ:
        raise QuantisedModelError(
            f"{entry.name} is stored as {entry.dtype}: quantised weights cannot be edited. Give "
            "the checkpoint in bfloat16, float16 or float32."
        )
    tensor = torch.empty(entry.shape, dtype=READ[entry.dtype])
    file.seek(entry.start)
    if file.readinto(as_bytes(tensor)) != entry.nbytes:
        raise ModelLoadError(f"The data of {entry.name} is cut off. Fetch the model again.")
    return tensor


def read_rows(file: BufferedReader, entry: Entry, first: int, last: int) -> Tensor:
    """Rows ``first`` to ``last`` (which is left out) of the tensor of an entry."""
    row = entry.nbytes // entry.shape[0]
    start, end = entry.start + first * row, entry.start + last * row
    return read_tensor(
        file, replace(entry, shape=(last - first, *entry.shape[1:]), start=start, end=end)
    )


def read_pieces(file: BufferedReader, entry: Entry) -> Iterator[bytes]:
    """The data of an entry as it is, a piece at a time."""
    file.seek(entry.start)
    for start in range(entry.start, entry.end, PIECE):
        yield file.read(min(PIECE, entry.end - start))


def as_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read ({error}). Fetch the model again.") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} holds no JSON object. Fetch the model again.")
    return value
