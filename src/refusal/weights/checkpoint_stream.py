"""Orthogonalise a checkpoint from folder to folder, a tensor at a time, without ever holding the
model.

The new folder has a shard for each shard of the old one. A shard is written whole or not at all,
and a journal in the new folder says which job it belongs to, so that the same command goes on after
an interruption. At most one tensor and its edited copy are in memory. At the end all is read again
and compared; a folder that is not what was meant goes away.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refusal.config.exports import NormRule
from refusal.config.options import ModelOptions
from refusal.core.direction import Direction
from refusal.core.progress import Advance, task
from refusal.core.storage import check_free, copy_file, remove, write_blocks, write_json, write_text
from refusal.interventions.ablate_add import Ablate
from refusal.interventions.stream import Place
from refusal.weights.checkpoint import (
    INDEX,
    Checkpoint,
    Entry,
    Shard,
    as_bytes,
    header_bytes,
    open_checkpoint,
    read_header,
    read_pieces,
    read_tensor,
)
from refusal.weights.checkpoint_edits import Plan, TensorEdit
from refusal.weights.checkpoint_journal import FORMAT, JOURNAL, check_folder, job_of
from refusal.weights.checkpoint_plan import load_norm, make_plan
from refusal.weights.edit import as_ablation
from refusal.weights.norms import before_norm
from refusal.weights.orthogonalise import OrthogonalisationReport
from refusal.weights.projection import Removal, check_kept, project_weight, share_read, size_before
from refusal.weights.save import SLACK, Exported, model_card, what_was_done
from refusal.weights.verify import Meant, check_loading, check_shard, deleted_if_wrong

MEGABYTE = 2**20


@dataclass(frozen=True)
class Streamed(Exported):
    """What was written, and how.

    Attributes:
        edited: checkpoint tensors that were edited.
        unclaimed: those that transformers ignores for this model, copied as they are.
        kept, written: shards that were there from before, and those written now.
        nbytes: bytes of the shards written now.
        planning_seconds: time to work out the edit.
    """

    edited: tuple[str, ...] = ()
    unclaimed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    nbytes: int = 0
    planning_seconds: float = 0.0


@dataclass(frozen=True)
class _Output:
    """One tensor of the new checkpoint: the source's entry under ``name``, edited if ``edit`` says
    so.
    """

    name: str
    entry: Entry
    edit: TensorEdit | None


AS_FOUND = ModelOptions()


def stream_model(
    source: Path,
    direction: Direction | Ablate,
    out: Path,
    *,
    name: str = "",
    norm: NormRule | None = None,
    options: ModelOptions = AS_FOUND,
) -> Streamed:
    """Write ``source``'s checkpoint, orthogonalised against the direction, into the folder ``out``.

    The tensors are the same, bit for bit, as those of a model that is loaded in the checkpoint's
    dtype, orthogonalised in memory and saved. Tokenizer, template, generation config and processor
    are copied.

    Args:
        source: a folder with ``config.json`` and safetensors.
        direction: what is projected out, or an ablation of any form.
        out: a new or empty folder, or one that the same call has begun to fill.
        name: what the model is called; default: ``source``.
        norm: whose norms are kept, see ``orthogonalise``.
        options: of them ``revision``, and ``blocks`` and ``writers`` where they are not found.

    Raises:
        ModelLoadError: no safetensors, or damaged ones.
        QuantisedModelError: the weights are not plain floating-point numbers.
        UnsupportedModelError: not everything that writes to the stream was found.
        DirectionError: a direction of another width or model, or without a length.
        ExportError: ``out`` holds something else, or what was written is not what was meant.
        StorageError: not enough room, or a file cannot be written.
    """
    name = name or str(source)
    checkpoint = open_checkpoint(source)
    ablation = as_ablation(direction)
    job = job_of(checkpoint, ablation, norm)
    check_folder(checkpoint, out, job)
    start = time.perf_counter()
    with task("work out the edit", total=0, unit=""):
        plan = make_plan(checkpoint, ablation, name, options.blocks, options.writers or None)
        removals = _removals(checkpoint, plan, ablation)
    for left in out.glob(".*.safetensors.*"):  # temporary files of a process that was killed
        remove(left)
    planning_seconds = time.perf_counter() - start
    outputs = {shard.path.name: _outputs(shard, plan) for shard in checkpoint.shards}
    kept = tuple(shard for shard, tensors in outputs.items() if _is_finished(out / shard, tensors))
    missing = 0
    for shard_name, tensors in outputs.items():
        if shard_name not in kept:
            missing += sum(output.entry.nbytes for output in tensors)
    check_free(out, missing + SLACK)
    write_json(out / JOURNAL, {"format": FORMAT, "job": job})
    with task("write the edited checkpoint", total=-(-missing // MEGABYTE), unit="MB") as advance:
        for shard in checkpoint.shards:
            if shard.path.name not in kept:
                tensors = outputs[shard.path.name]
                write_blocks(
                    out / shard.path.name,
                    _blocks(shard, tensors, removals, norm, _counted(advance)),
                )
    read = [0.0, 0.0]
    with (
        deleted_if_wrong(out),
        task("read what was written", total=len(checkpoint.shards), unit="files") as advance,
    ):
        for shard in checkpoint.shards:
            check_shard(
                out / shard.path.name,
                _meant(shard, outputs[shard.path.name], removals, norm, read),
            )
            advance(1)
        report = OrthogonalisationReport(
            parameters=tuple(parameter.name for parameter in plan.parameters),
            behind_norm=sum(parameter.norm is not None for parameter in plan.parameters),
            untied=plan.untied,
            norm=norm,
            left=(read[1] / read[0]) ** 0.5 if read[0] else 0.0,
        )
        _write_rest(
            checkpoint, plan, outputs, what_was_done(name, options.revision, ablation, report), out
        )
        check_loading(out, type(plan.model).__name__)
    remove(out / JOURNAL)
    return Streamed(
        kind="model",
        path=out,
        report=report,
        edited=tuple(sorted(plan.edits)),
        unclaimed=tuple(sorted(plan.unclaimed)),
        kept=kept,
        written=tuple(shard for shard in outputs if shard not in kept),
        nbytes=missing,
        planning_seconds=planning_seconds,
    )


Removals = dict[tuple[Place, str | None], Removal]


def _removals(checkpoint: Checkpoint, plan: Plan, ablation: Ablate) -> Removals:
    """What to take out, by place and by the name of the norm between a tensor and the stream
    (``None`` without one).
    """
    norms = {norm: load_norm(plan, norm, checkpoint) for norm in plan.norms}
    found: Removals = {}
    for edit in plan.edits.values():
        key = (edit.place, edit.norm)
        if key not in found:
            rows, strength = ablation.taken_at(edit.place)
            rows = rows.float().cpu()
            found[key] = (
                Removal.of(rows, strength)
                if edit.norm is None
                else before_norm(norms[edit.norm], rows, strength)
            )
    return found


def _outputs(shard: Shard, plan: Plan) -> list[_Output]:
    """The tensors of the new shard in order, each followed by its copies: a tied embedding's
    original is the head.
    """
    found = []
    for entry in shard.entries:
        edit = plan.edits.get(entry.name)
        found.append(_Output(entry.name, entry, edit))
        for copy in plan.copies:
            if copy.source == entry.name:
                found.append(_Output(copy.name, entry, None if copy.original else edit))
    return found


def _blocks(
    shard: Shard,
    outputs: list[_Output],
    removals: Removals,
    norm: NormRule | None,
    advance: Advance,
) -> Iterator[bytes | memoryview]:
    """The content of a new shard, piece by piece."""
    table = [(o.name, o.entry.dtype, o.entry.shape, o.entry.nbytes) for o in outputs]
    yield header_bytes(table, shard.metadata)
    with shard.path.open("rb") as file:
        for output in outputs:
            if output.edit is None:
                for piece in read_pieces(file, output.entry):
                    yield piece
                    advance(len(piece))
            else:
                removal = removals[output.edit.place, output.edit.norm]
                yield as_bytes(_edited(file, output.entry, output.edit.axis, removal, norm)[0])
                advance(output.entry.nbytes)


def _meant(
    shard: Shard,
    outputs: list[_Output],
    removals: Removals,
    norm: NormRule | None,
    read: list[float],
) -> Iterator[Meant]:
    """What a new shard should hold, tensor by tensor, from the old one. ``read`` grows by squares
    of what the directions read in each edited tensor before and after.
    """
    with shard.path.open("rb") as file:
        for output in outputs:
            if output.edit is None:
                yield Meant(output.entry, output.name, read_pieces(file, output.entry))
            else:
                axis, removal = output.edit.axis, removals[output.edit.place, output.edit.norm]
                edited, size = _edited(file, output.entry, axis, removal, norm, read)
                yield Meant(
                    output.entry,
                    output.name,
                    edited=edited,
                    axis=axis,
                    removal=removal,
                    size=size,
                    norm=norm,
                )


@torch.no_grad()
def _edited(
    file: BufferedReader,
    entry: Entry,
    axis: int,
    removal: Removal,
    norm: NormRule | None,
    read: list[float] | None = None,
) -> tuple[Tensor, float]:
    """An edited tensor and the size of the original, which is gone when this returns."""
    old = read_tensor(file, entry)
    new = project_weight(old, axis, removal, norm)
    check_kept(entry.name, old, new, axis, removal, norm)
    if read is not None:
        read[:] = [a + b for a, b in zip(read, share_read(old, new, axis, removal), strict=True)]
    return new, size_before(old, axis, removal, norm)


def _write_rest(
    checkpoint: Checkpoint,
    plan: Plan,
    outputs: dict[str, list[_Output]],
    note: dict[str, Any],
    out: Path,
) -> None:
    """Model card, index, config and the other files; the config last, since a folder without it is
    no model.
    """
    for path in checkpoint.other_files():
        copy_file(path, out / path.name)
    write_text(out / "README.md", model_card("model", note))
    if checkpoint.index is not None:
        places = {output.name: shard for shard, tensors in outputs.items() for output in tensors}
        size = sum(output.entry.nbytes for tensors in outputs.values() for output in tensors)
        metadata = {**checkpoint.index.get("metadata", {}), "total_size": size}
        if "total_parameters" in metadata:
            metadata["total_parameters"] = sum(
                o.entry.numel for tensors in outputs.values() for o in tensors
            )
        write_json(out / INDEX, {"metadata": metadata, "weight_map": dict(sorted(places.items()))})
    config = json.loads(json.dumps(checkpoint.config))
    if plan.untied:
        config["tie_word_embeddings"] = False
        if "tie_word_embeddings" in config.get("text_config", {}):
            config["text_config"]["tie_word_embeddings"] = False
    write_json(out / "config.json", {**config, "refusal": note})


def _is_finished(path: Path, outputs: list[_Output]) -> bool:
    """Whether a shard is there with every tensor: it gets its name only when it is whole."""
    if not path.is_file():
        return False
    there = [(entry.name, entry.dtype, entry.shape) for entry in read_header(path).entries]
    return there == [(o.name, o.entry.dtype, o.entry.shape) for o in outputs]


def _counted(advance: Advance) -> Advance:
    """Turn bytes into whole megabytes of progress."""
    total = 0

    def count(nbytes: int) -> None:
        nonlocal total
        before, total = total, total + nbytes
        advance(total // MEGABYTE - before // MEGABYTE)

    return count
