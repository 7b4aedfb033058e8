"""A verified projection undone: ``W + u (u'W_base) a`` in every layer where the identity holds.

Written shard by shard. What the edit took along its directions is put back from the base; all else
of the candidate (fine-tuning before or after) stays. Of an edited fine-tune its own component along
the directions is lost: the base's stands in its place.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.audits.forensics.blocks import columns, common, views
from refusal.audits.forensics.examine import FOUND, Examination, Known, compare_weights
from refusal.audits.forensics.frames import scale_of
from refusal.audits.forensics.identity import Examined
from refusal.audits.forensics.pairs import Folders
from refusal.audits.forensics.writers import Writer
from refusal.core.errors import ExportError
from refusal.core.progress import task
from refusal.core.storage import copy_file, new_folder, write_blocks, write_json, write_text
from refusal.weights.checkpoint import INDEX, Shard, as_bytes, header_bytes, read_pieces
from refusal.weights.save import SLACK
from refusal.weights.verify import check_loading

LEFT = 0.5  # of a bias's change: a bias whose change is not the projection's is left as it is


@dataclass(frozen=True)
class Repaired:
    """What was written.

    Attributes:
        path: the folder.
        tensors: how many were repaired.
        layers: in how many layers (embeddings count as one).
        lost: what could not be restored, in sentences.
    """

    path: Path
    tensors: int
    layers: int
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Correction:
    """What is put back into one writer: ``write @ matrix @ (read' W_base)``."""

    writer: Writer
    read: Float[Tensor, "d_model n"]
    write: Float[Tensor, "d_model n"]
    matrix: Float[Tensor, "n n"]


@torch.no_grad()
def repair(candidate: str, base: str, out: Path, *, known: Known = FOUND) -> Repaired:
    """Examine a candidate beside its base, and write it with what was projected out put back.

    Args:
        candidate: a folder or hub id; of an adapter there is nothing to repair.
        base: what it was made from.
        out: a new or empty folder.
        known: where the model's kind is not understood by itself.

    Raises:
        ExportError: nothing was projected out of the candidate, it is an adapter, or ``out`` is
            taken.
        StorageError: not enough room, or a file cannot be written.
        refusal.Error: what ``compare_weights`` raises.
    """
    found, changes, every = find_corrections(candidate, base, known)
    corrections = {changes.names[one.writer.name]: one for one in every}
    lost = cannot_restore(found)
    checkpoint = changes.candidate.checkpoint
    size = sum(entry.nbytes for entry in checkpoint.entries.values())
    with new_folder(out, size + SLACK) as folder:
        with task("write the repaired checkpoint", len(checkpoint.shards), "files") as advance:
            for shard in checkpoint.shards:
                blocks = _blocks(shard, corrections, changes)
                write_blocks(folder / shard.path.name, blocks)
                advance(1)
        for path in checkpoint.other_files():
            copy_file(path, folder / path.name)
        if checkpoint.index is not None:
            write_json(folder / INDEX, checkpoint.index)
        note = {"repaired_from": _named(candidate), "base": _named(base), "lost": list(lost)}
        config: dict[str, Any] = json.loads(json.dumps(checkpoint.config))
        config.pop("refusal", None)  # what an export of ours said of the edit
        write_json(folder / "config.json", {**config, "refusal_repair": note})
        write_text(folder / "README.md", card(found, lost))
        check_loading(folder, checkpoint.config.get("architectures", [""])[0])
    layers = len({layer.layer for layer in found.record.edited})
    return Repaired(out, len(corrections), layers, lost)


def find_corrections(
    candidate: str, base: str, known: Known = FOUND
) -> tuple[Examination, Folders, tuple[Correction, ...]]:
    """Examine a candidate beside its base, and work out what is put back into each writer.

    Raises:
        ExportError: nothing was projected out of the candidate, or it is an adapter.
        refusal.Error: what ``compare_weights`` raises.
    """
    found = compare_weights(candidate, base, known=known)
    changes = found.changes
    if not isinstance(changes, Folders):
        raise ExportError(
            f"{candidate} is an adapter: the base's own weights are as they were. Load the base "
            "without it."
        )
    if not found.record.edited:
        raise ExportError(
            f"{candidate} is {found.record.verdict} beside {base}: there is no projection to undo."
        )
    return found, changes, tuple(_corrections(found, changes))


def cannot_restore(found: Examination) -> tuple[str, ...]:
    """Say what the repair does not bring back."""
    said = [
        "What the candidate had along the directions by itself (a fine-tune's own part) is gone: "
        "the base's stands in its place."
    ]
    edited = found.record.edited
    if kept := sum(layer.kept is not None for layer in edited):
        said.append(
            f"In {kept} layers norms were kept beside projecting: the lengths are not undone, "
            "which leaves about 1 part in the width."
        )
    untouched = [layer for layer in found.record.layers if layer.changed and not layer.holds]
    if untouched:
        said.append(f"{len(untouched)} layers are changed in another way and stay as they are.")
    return tuple(said)


def card(found: Examination, lost: Sequence[str]) -> str:
    """README.md of the repaired folder."""
    record = found.record
    base = _named(record.base or "")
    head = f"base_model: {base}\n" if "/" in base else ""
    lines = "\n".join(f"- {line}" for line in (*record.recipe, *lost))
    layers = len({layer.layer for layer in record.edited})
    return (
        f"---\n{head}library_name: transformers\ntags:\n- refusal-direction\n---\n\n"
        f"# {_named(record.candidate)}, a projection undone\n\n"
        f"Beside {base}, {layers} layers were found to be edited by projection. "
        "What was taken along the recovered directions was put back from the base; nothing was "
        f"trained.\n\n{lines}\n\nThis restores weights, and is no promise of how the model "
        "behaves: measure it. The licences of both models go on applying.\n"
    )


def _named(name: str) -> str:
    """A path says nothing elsewhere."""
    return Path(name).name if Path(name).expanduser().exists() else name


def _corrections(found: Examination, changes: Folders) -> Iterator[Correction]:
    """One for each writer in whose component the identity holds, biases too where they fit."""
    for one in found.layers:
        if not one.layer.holds or one.directions is None:
            continue
        holding = {part.component for part in one.layer.parts if part.holds}
        for writer in found.writers:
            if writer.layer != one.layer.layer or (holding and writer.component not in holding):
                continue
            correction = _correction(one, writer, changes)
            if correction is not None:
                yield correction


def _correction(one: Examined, writer: Writer, changes: Folders) -> Correction | None:
    """The best fit of the writer's change in the directions' span: exact where it is a
    projection.
    """
    assert one.directions is not None
    change, unit = changes.load(writer), one.directions.float()
    if change.unchanged:
        return None
    scale = scale_of(one.layer.frame, writer, change) if writer.matrix else None
    if scale is None and writer.gain is not None and one.layer.frame == "behind its norm":
        scale = writer.gain.float()
    read = unit if scale is None else unit * scale[:, None]
    write = unit if scale is None else unit / scale[:, None]
    count = unit.shape[1]
    dw, ww = (torch.zeros(count, count, dtype=torch.float64) for _ in range(2))
    size = left = 0.0
    for base, delta in change.blocks():
        d, w = (read.T @ delta).double(), (read.T @ base).double()
        dw, ww = dw + d @ w.T, ww + w @ w.T
    matrix = -dw @ torch.linalg.pinv(ww, rtol=1e-9)
    if not writer.matrix:  # along one column any change fits: take the layer's own strengths
        matrix = torch.diag(torch.tensor([a.strength for a in one.layer.along]).double())
        for base, delta in change.blocks():
            rest = delta + write @ (matrix.float() @ (read.T @ base))
            size, left = size + float(delta.square().sum()), left + float(rest.square().sum())
        if left > LEFT**2 * size:
            return None
    return Correction(writer, read, write, matrix.float())


def _blocks(
    shard: Shard, corrections: dict[str, Correction], changes: Folders
) -> Iterator[bytes | memoryview]:
    """The content of a repaired shard, piece by piece."""
    yield header_bytes(
        [(e.name, e.dtype, e.shape, e.nbytes) for e in shard.entries], shard.metadata
    )
    with shard.path.open("rb") as file:
        for entry in shard.entries:
            if entry.name in corrections:
                yield as_bytes(_repaired(entry.name, corrections[entry.name], changes))
            else:
                yield from read_pieces(file, entry)


def _repaired(name: str, correction: Correction, changes: Folders) -> Tensor:
    """A tensor of the candidate with what was taken put back."""
    writer = correction.writer
    new = changes.candidate.read(name)
    base, part = common(changes.base.read(writer.name), new)
    put_back = correction.write @ correction.matrix
    pairs = zip(columns(base, writer.axis), views(part, writer.axis), strict=True)
    for block, view in pairs:  # views of the new tensor: what is written goes into it
        added = put_back @ (correction.read.T @ block)
        view.copy_((view.float().reshape(block.shape) + added).to(view.dtype).reshape(view.shape))
    return new
