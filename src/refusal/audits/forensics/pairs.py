"""A candidate beside its base: which tensor is which, and what is changed, one tensor at a time."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.audits.forensics.blocks import CHUNK, columns, common, rounded_alike
from refusal.audits.forensics.writers import Writer
from refusal.core.errors import ModelLoadError, UnsupportedModelError
from refusal.weights.checkpoint import (
    Checkpoint,
    Entry,
    open_checkpoint,
    read_pieces,
    read_rows,
    read_tensor,
)
from refusal.weights.checkpoint_plan import find_targets, read_config
from refusal.weights.proxy_model import skeleton

Block = tuple[Float[Tensor, "d_model input"], Float[Tensor, "d_model input"]]


class Change(ABC):
    """One writer of the base, and what was done to it."""

    @property
    @abstractmethod
    def unchanged(self) -> bool:
        """Whether nothing was done to it."""

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """The base's columns and what was added to them, float32, a block at a time."""


class Changes(ABC):
    """All that was done to a base."""

    @abstractmethod
    def load(self, writer: Writer) -> Change:
        """Read one writer; nothing of it is kept."""

    @abstractmethod
    def compare(self, writers: tuple[Writer, ...]) -> tuple[int, int, tuple[str, ...]]:
        """Count tensors and those that are changed, and say what else was seen."""


@dataclass(frozen=True)
class Dense(Change):
    """A tensor of both checkpoints, as far as they share its shape."""

    base: Tensor
    candidate: Tensor
    axis: int

    @property
    def unchanged(self) -> bool:
        """Whether the values are the same."""
        return torch.equal(self.base, self.candidate.to(self.base.dtype))

    def blocks(self) -> Iterator[Block]:
        """The base's columns and the difference."""
        pairs = zip(columns(self.base, self.axis), columns(self.candidate, self.axis), strict=True)
        for base, candidate in pairs:
            yield base, candidate - base


@dataclass(frozen=True)
class Rows(Change):
    """A matrix that has a row for each input, read some rows at a time: an embedding may be the
    largest tensor by far, and is never held whole.
    """

    parts: Callable[[], Iterator[Dense]]

    @property
    def unchanged(self) -> bool:
        """Whether the values are the same."""
        return all(part.unchanged for part in self.parts())

    def blocks(self) -> Iterator[Block]:
        """The base's columns and the difference."""
        for part in self.parts():
            yield from part.blocks()


class Files:
    """The tensors of a checkpoint by name."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.places: dict[str, tuple[Path, Entry]] = {}
        for shard in checkpoint.shards:
            self.places.update((entry.name, (shard.path, entry)) for entry in shard.entries)

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        path, entry = self.places[name]
        with path.open("rb") as file:
            return read_tensor(file, entry)

    def rows(self, name: str, step: int, count: int) -> Iterator[Tensor]:
        """The first ``count`` rows of one tensor, ``step`` at a time."""
        path, entry = self.places[name]
        with path.open("rb") as file:
            for first in range(0, count, step):
                yield read_rows(file, entry, first, min(first + step, count))

    def pieces(self, name: str) -> Iterator[bytes]:
        """One tensor's bytes."""
        path, entry = self.places[name]
        with path.open("rb") as file:
            yield from read_pieces(file, entry)


class Folders(Changes):
    """A whole checkpoint beside its base."""

    def __init__(
        self, base: Checkpoint, candidate: Checkpoint, writers: tuple[Writer, ...]
    ) -> None:
        """Find the candidate's tensors.

        Raises:
            UnsupportedModelError: another architecture, width or number of layers.
            ModelLoadError: the candidate lacks some.
        """
        self.base, self.candidate = Files(base), Files(candidate)
        check_alike(base, candidate)
        self.names = _matched(base, candidate, writers)
        for writer in writers:
            _, one = self.base.places[writer.name]
            _, other = self.candidate.places[self.names[writer.name]]
            _check_shape(writer, one, other)

    def load(self, writer: Writer) -> Change:
        """Both tensors, the base's rounded as the candidate's is."""
        name, own, axis = writer.name, self.names[writer.name], writer.axis
        if len(self.base.places[name][1].shape) == 2 and axis == 1:
            return Rows(lambda: self._rows(name, own))
        base, candidate = common(self.base.read(name), self.candidate.read(own))
        return Dense(rounded_alike(base, candidate), candidate, axis)

    def _rows(self, name: str, own: str) -> Iterator[Dense]:
        """Rows of both, as many at a time as make a block."""
        shapes = self.base.places[name][1].shape, self.candidate.places[own][1].shape
        step, count = max(1, CHUNK // shapes[0][1]), min(shape[0] for shape in shapes)
        both = (self.base.rows(name, step, count), self.candidate.rows(own, step, count))
        for base, candidate in zip(*both, strict=True):
            yield Dense(rounded_alike(base, candidate), candidate, 1)

    def compare(self, writers: tuple[Writer, ...]) -> tuple[int, int, tuple[str, ...]]:
        """Compare every tensor; a head that was untied or a larger vocabulary is told, and what the
        base lacks (a bias, say) is a change.
        """
        back = {own: name for name, own in self.names.items()}
        ours, theirs = self.base.places, self.candidate.places
        changed, notes = 0, []
        for own, (_, entry) in theirs.items():
            name = back.get(own, own)
            if name in ours and ours[name][1].shape != entry.shape:
                changed += 1
                notes.append(f"{name} is {entry.shape}, in the base {ours[name][1].shape}.")
            elif name in ours:
                changed += not self._same(name, own)
        new, gone = self._only(theirs, ours, back), self._only(ours, theirs, back)
        for names, whose in ((new, "candidate"), (gone, "base")):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                notes.append(f"Only the {whose} has {names[0]}{more}{_tied(names)}.")
        if not gone and not _tied(new):  # else they may be the base's under other names
            changed += len(new)
        return len(theirs), changed, tuple(notes)

    def _only(
        self, files: Collection[str], others: Collection[str], back: Collection[str]
    ) -> list[str]:
        return [n for n in files if n not in others and n not in back and n not in self.names]

    def _same(self, name: str, own: str) -> bool:
        one, other = self.base.places[name][1], self.candidate.places[own][1]
        if one.dtype == other.dtype:
            pairs = zip(self.base.pieces(name), self.candidate.pieces(own), strict=True)
            return all(a == b for a, b in pairs)
        base, candidate = self.base.read(name), self.candidate.read(own)
        return torch.equal(rounded_alike(base, candidate).double(), candidate.double())


def check_alike(base: Checkpoint, candidate: Checkpoint) -> None:
    """Make sure that a candidate can come from a base.

    Raises:
        UnsupportedModelError: it is of another architecture, width or number of layers.
    """
    kinds: dict[str, Callable[[Checkpoint], object]] = {
        "architecture": lambda c: c.config.get("model_type"),
        "width": lambda c: _text(c).get("hidden_size", _text(c).get("n_embd")),
        "number of layers": lambda c: _text(c).get("num_hidden_layers", _text(c).get("n_layer")),
    }
    for what, of in kinds.items():
        if (one := of(base)) != (other := of(candidate)):
            raise UnsupportedModelError(
                f"{candidate.folder} has the {what} {other} and {base.folder} {one}, so it was not "
                "made from it. Give the model that it was made from with --base."
            )


def open_candidate(folder: Path) -> Checkpoint:
    """Open a checkpoint whose config does not say that it is quantised.

    Raises:
        ModelLoadError: files are missing or damaged.
        QuantisedModelError: it is.
    """
    checkpoint = open_checkpoint(folder)
    read_config(checkpoint)
    return checkpoint


def _text(checkpoint: Checkpoint) -> Mapping[str, object]:
    inner = checkpoint.config.get("text_config")
    return inner if isinstance(inner, dict) else checkpoint.config


def _matched(
    base: Checkpoint, candidate: Checkpoint, writers: tuple[Writer, ...]
) -> dict[str, str]:
    """The candidate's name of each writer: the same one, or where transformers loads it to the same
    parameter.
    """
    there = candidate.entries
    if all(writer.name in there for writer in writers):
        return {writer.name: writer.name for writer in writers}
    targets, _ = find_targets(skeleton(read_config(candidate)), candidate)
    own: dict[str, list[str]] = {}
    for name, target in targets.items():
        own.setdefault(target.name, []).append(name)
    ours: dict[str, list[str]] = {}
    for writer in writers:
        ours.setdefault(writer.target, []).append(writer.name)
    found: dict[str, str] = {}
    missing: list[str] = []
    for parameter, names in ours.items():
        if len(own.get(parameter, ())) == len(names):
            found.update(zip(names, own[parameter], strict=True))
        else:
            missing += names
    if missing:
        raise ModelLoadError(
            f"{candidate.folder} lacks {len(missing)} tensors that the base has, such as "
            f"{missing[0]}. Fetch it again."
        )
    return found


def _check_shape(writer: Writer, one: Entry, other: Entry) -> None:
    """The candidate's tensor may have another shape only before the blocks, where the vocabulary
    is.
    """
    same = one.shape == other.shape
    resized = len(one.shape) == len(other.shape) and writer.layer is None
    if not same and not (resized and one.shape[writer.axis] == other.shape[writer.axis]):
        raise UnsupportedModelError(
            f"{writer.name} has the shape {other.shape} in the candidate and {one.shape} in the "
            "base, so it was not made from it. Give the model that it was made from with --base."
        )


def _tied(names: list[str]) -> str:
    """What a lone head means."""
    heads = [name for name in names if name.endswith(("lm_head.weight", "embed_out.weight"))]
    return (
        ": its head is a tensor of its own, the other's is tied to the embedding" if heads else ""
    )
