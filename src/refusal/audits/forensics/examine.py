"""What was done to a checkpoint: at most one tensor and its base are in memory."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mode

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.audits.forensics.adapter import Adapter, is_adapter, read_adapter_config
from refusal.audits.forensics.identity import Examined, examine_layer
from refusal.audits.forensics.kept import fitted_strength, norms_kept
from refusal.audits.forensics.pairs import Changes, Folders, open_candidate
from refusal.audits.forensics.recipe import recipe_of
from refusal.audits.forensics.records import Forensics, Identity, Layer, Verdict
from refusal.audits.forensics.spectrum import largest
from refusal.audits.forensics.words import WITH_BASE, lacking_note
from refusal.audits.forensics.writers import Writer, find_writers
from refusal.core.direction import Direction
from refusal.core.errors import ConfigError
from refusal.core.progress import task
from refusal.model.load import local_folder


@dataclass(frozen=True)
class Examination:
    """What was found, and the tensors behind it.

    Attributes:
        record: what was found.
        directions: recovered from all edited layers together, unit vectors; none where none is
            edited.
        layers: each layer's record with its directions, in its frame.
        writers, changes: what was compared.
    """

    record: Forensics
    directions: Float[Tensor, "n d_model"]
    layers: tuple[Examined, ...]
    writers: tuple[Writer, ...]
    changes: Changes


@dataclass(frozen=True)
class Known:
    """What is told of a model's kind where it is not found: as in ``find_sites``."""

    blocks: str | None = None
    writers: tuple[str, ...] = ()


FOUND = Known()


@torch.no_grad()
def compare_weights(
    candidate: str,
    base: str,
    *,
    known: Known = FOUND,
    writers: tuple[Writer, ...] | None = None,
) -> Examination:
    """Examine a candidate beside the base that it was made from.

    Args:
        candidate: a folder, a hub id, or the folder of a LoRA adapter.
        base: a folder or hub id.
        known: where the model's kind is not understood by itself.
        writers: of the base, if they have been found already.

    Raises:
        ConfigError: both are one folder.
        ModelLoadError: files are missing or damaged.
        QuantisedModelError: one of them is stored quantised.
        UnsupportedModelError: the candidate was not made from the base, or the model's kind is not
            understood.
        NonFiniteError: a weight is NaN or infinite.
    """
    start = time.perf_counter()
    folder, base_folder = folder_of(candidate), local_folder(base)
    if folder.resolve() == base_folder.resolve():
        raise ConfigError(
            f"{candidate} is given as the candidate and as its base. Give the model that it was "
            "made from with --base, or no base."
        )
    opened = open_candidate(base_folder)
    adapter = is_adapter(folder)
    other = None if adapter else open_candidate(folder)  # damaged files are told before the work
    if writers is None:
        with task("find what writes to the stream", total=0, unit=""):
            writers = find_writers(opened, known.blocks, known.writers)
    changes: Changes = (
        Adapter(opened, folder, writers) if other is None else Folders(opened, other, writers)
    )
    tensors, changed, notes = changes.compare(writers)
    examined = examine_layers(writers, changes)
    layers = [one.layer for one in examined]
    if changed == 0:
        verdict: Verdict = "unchanged"
    else:
        edited = any(layer.holds for layer in layers)
        verdict = "edited by projection" if edited else "changed, not by projection"
    directions, agreement = pool(examined)
    layers = _with_cosines(examined, directions)
    record = Forensics(
        candidate=candidate,
        base=base,
        verdict=verdict,
        recipe=recipe_of(layers, agreement, adapter),
        cannot=WITH_BASE,
        notes=tuple(note for note in (*notes, lacking_note(layers)) if note),
        tensors=tensors,
        tensors_changed=changed,
        layers=tuple(layers),
        directions=len(directions),
        agreement=agreement,
        seconds=time.perf_counter() - start,
    )
    return Examination(record, directions, tuple(examined), writers, changes)


ONE_ALIKE = 0.95  # an R^2 below which a component is looked at by itself
SAME_AXIS = 0.98  # cosine from which two components have one direction


def folder_of(name: str) -> Path:
    """The folder of a model or adapter; a hub model's files are fetched."""
    path = Path(name).expanduser()
    if is_adapter(path):
        read_adapter_config(path)
        return path
    return local_folder(name)


def examine_layers(writers: Sequence[Writer], changes: Changes) -> list[Examined]:
    """Every layer, from the embeddings to the last block."""
    by_layer: dict[int | None, list[Writer]] = {}
    for writer in writers:
        by_layer.setdefault(writer.layer, []).append(writer)
    found = []
    with task("compare the weights", total=len(by_layer), unit="layers") as advance:
        for number, group in by_layer.items():
            if any(writer.matrix for writer in group):
                for one, own in _apart(number, group, changes):
                    found.append(_with_norms(one, own, changes))
            advance(1)
    return found


def _apart(
    number: int | None, group: list[Writer], changes: Changes
) -> list[tuple[Examined, list[Writer]]]:
    """A layer as one; or each of its components, where the identity holds of every changed one by
    itself, and along another direction than the layer's.
    """
    whole = examine_layer(number, group, changes)
    changed = [part for part in whole.layer.parts if part.changed]
    poor = [part for part in changed if max((a.r2 for a in part.along), default=0.0) < ONE_ALIKE]
    if len(changed) < 2 or not poor or len(whole.layer.along) > 1:
        return [(whole, group)]
    alone = []
    for part in whole.layer.parts:
        own = [writer for writer in group if writer.component == part.component]
        one = examine_layer(number, own, changes)
        if part.changed and not one.layer.holds:
            return [(whole, group)]
        alone.append((one, own))
    axes = [one.directions[:, 0] for one, _ in alone if one.directions is not None]
    agree = all(abs(float(axes[0] @ axis)) > SAME_AXIS for axis in axes)
    return [(whole, group)] if agree else alone


def pool(examined: Sequence[Examined]) -> tuple[Float[Tensor, "n d_model"], float | None]:
    """The directions of all edited layers as so many as most layers have, and how far those agree:
    the mean length of a layer's direction within their span.
    """
    found = [one.directions for one in examined if one.layer.holds and one.directions is not None]
    if not found:
        width = next((len(o.directions) for o in examined if o.directions is not None), 0)
        return torch.zeros(0, width, dtype=torch.float64), None
    every = torch.cat([directions.double() for directions in found], 1)
    _, vectors = largest(every @ every.T, mode(one.shape[1] for one in found))
    vectors = vectors * vectors.sum(0).sign()  # one of the two signs; weights know none
    return vectors.T, float((vectors.T @ every).norm(dim=0).mean())


def save_directions(directions: Float[Tensor, "n d_model"], folder: Path) -> None:
    """Write the recovered directions, the first as ``direction.safetensors``; weights do not say
    their signs, norms and places.

    Raises:
        StorageError: a file cannot be written.
    """
    for i, vector in enumerate(directions):
        name = "direction.safetensors" if i == 0 else f"direction-{i + 1}.safetensors"
        unit = vector.float() / vector.float().norm()
        Direction(unit, norm=1.0, position=-1, layer=0, qualified=False).save(folder / name)


def _with_norms(one: Examined, group: Sequence[Writer], changes: Changes) -> Examined:
    """A layer with which norms were kept; where those of rows were, with fitted strengths."""
    layer = one.layer
    if not layer.holds or one.directions is None:
        return one
    by_part: dict[str, list[Writer]] = {}
    for writer in group:
        if writer.matrix:
            by_part.setdefault(writer.component, []).append(writer)
    holding = [part.component for part in layer.parts if part.holds] or list(by_part)
    edited = [writer for name in holding for writer in by_part[name]]
    strengths = [along.strength for along in layer.along]
    kept = norms_kept(edited, changes, one.directions, strengths)
    layer = replace(layer, kept=kept)
    if kept == "row" and len(strengths) == 1:
        unit = one.directions[:, 0]

        def fitted(along: tuple[Identity, ...], of: list[Writer]) -> tuple[Identity, ...]:
            strength = fitted_strength(of, changes, unit, along[0].strength)
            return (replace(along[0], strength=strength),)

        parts = []
        for part in layer.parts:
            new = fitted(part.along, by_part[part.component]) if part.holds else part.along
            parts.append(replace(part, along=new))
        layer = replace(layer, along=fitted(layer.along, edited), parts=tuple(parts))
    return replace(one, layer=layer)


def _with_cosines(
    examined: Sequence[Examined], directions: Float[Tensor, "n d_model"]
) -> list[Layer]:
    """Each layer with how much of its directions is in the span of the pooled ones."""
    found = []
    for one in examined:
        cosines: tuple[float, ...] = ()
        if one.layer.holds and one.directions is not None:
            cosines = tuple((directions @ one.directions.double()).norm(dim=0).tolist())
        found.append(replace(one.layer, cosines=cosines))
    return found
