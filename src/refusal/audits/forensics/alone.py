"""A checkpoint examined without its base: was anything projected out of it exactly?"""

import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import mode

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.audits.forensics.adapter import is_adapter, read_adapter_config
from refusal.audits.forensics.examine import FOUND, Known, folder_of
from refusal.audits.forensics.floor import examine_floors
from refusal.audits.forensics.pairs import Files, open_candidate
from refusal.audits.forensics.records import Floor, Forensics, Verdict
from refusal.audits.forensics.spectrum import largest
from refusal.audits.forensics.words import WITHOUT_BASE
from refusal.audits.forensics.writers import Writer, find_writers
from refusal.core.errors import ConfigError
from refusal.core.progress import task


@torch.no_grad()
def examine_weights(
    candidate: str, *, known: Known = FOUND
) -> tuple[Forensics, Float[Tensor, "n d_model"]]:
    """Examine a checkpoint by itself: the record, and the directions that were projected out.

    Args:
        candidate: a folder or hub id.
        known: where the model's kind is not understood by itself.

    Raises:
        ConfigError: an adapter, which is nothing without its base.
        ModelLoadError: files are missing or damaged.
        QuantisedModelError: it is stored quantised.
        UnsupportedModelError: the model's kind is not understood.
        NonFiniteError: a weight is NaN or infinite.
    """
    start = time.perf_counter()
    folder = folder_of(candidate)
    if is_adapter(folder):
        name = read_adapter_config(folder).get("base_model_name_or_path")
        raise ConfigError(
            f"{candidate} is an adapter, which says nothing without its base. Give that with "
            f"--base (the adapter names {name})."
        )
    checkpoint = open_candidate(folder)
    with task("find what writes to the stream", total=0, unit=""):
        writers = find_writers(checkpoint, known.blocks, known.writers)
    floors, found = _clearest(writers, Files(checkpoint))
    agreement = None
    directions = torch.zeros(0, len(found[0]) if found else 0, dtype=torch.float64)
    if found:
        every = torch.cat(found, 1)
        _, vectors = largest(every @ every.T, mode(one.shape[1] for one in found))
        directions = (vectors * vectors.sum(0).sign()).T
        agreement = float((directions @ every).norm(dim=0).mean())
    record = Forensics(
        candidate=candidate,
        base=None,
        verdict=_verdict(floors),
        recipe=_said(floors, agreement),
        cannot=WITHOUT_BASE,
        notes=_untested(floors),
        floors=tuple(floors),
        directions=len(directions),
        agreement=agreement,
    )
    return replace(record, seconds=time.perf_counter() - start), directions


def _clearest(
    writers: Sequence[Writer], files: Files
) -> tuple[list[Floor], list[Float[Tensor, "d n"]]]:
    """The floors; behind a post-norm both of the weights scaled by its gain (an edit that knows of
    the norm) and of the plain ones (an edit that does not), whichever shows more.
    """
    scaled = examine_floors(writers, files)
    if all(writer.gain is None for writer in writers) or all(one.found for one in scaled[0]):
        return scaled
    plain = examine_floors([replace(writer, gain=None) for writer in writers], files)
    return max(scaled, plain, key=lambda both: sum(one.found for one in both[0]))


def _verdict(floors: list[Floor]) -> Verdict:
    """Of the layers that were tested, unless none was, or some were not and the others show
    nothing.
    """
    if any(floor.found for floor in floors):
        return "edited by projection"
    blocks = [floor for floor in floors if floor.layers != (None,)]
    tested = sum(floor.tested for floor in blocks)
    return "no exact projection found" if 2 * tested > len(blocks) else "not tested"


def _said(floors: list[Floor], agreement: float | None) -> tuple[str, ...]:
    found = [floor for floor in floors if floor.found]
    if not found:
        return ()
    blocks = {layer for floor in found for layer in floor.layers if layer is not None}
    every = {layer for floor in floors for layer in floor.layers if layer is not None}
    embeddings = any(floor.layers == (None,) for floor in found)
    said = [f"Exact projection in {len(blocks)} of {len(every)} blocks"]
    said[0] += ", and in the embeddings." if embeddings else "; not in the embeddings."
    if agreement is not None and len(found) > 1:
        same = "the same direction" if agreement > 0.99 else "not one direction"
        said.append(f"Between layers: {same} (mean cosine {agreement:.3f}).")
    return tuple(said)


def _untested(floors: list[Floor]) -> tuple[str, ...]:
    reasons: dict[str, int] = {}
    for floor in floors:
        if not floor.tested:
            reasons[floor.why] = reasons.get(floor.why, 0) + len(floor.layers)
    return tuple(f"{count} layers are not tested: {why}." for why, count in reasons.items())
