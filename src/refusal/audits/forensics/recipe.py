"""Which recipe an edit resembles, told from its depth kernel: the strength by layer and
component.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, mode

from refusal.audits.forensics.records import Layer

SAME = 0.05  # strengths that differ by less are one strength
EXACT = 0.05  # how near a strength is to 1 (projection) or 2 (reflection)
AGREE = 0.99


def recipe_of(layers: Sequence[Layer], agreement: float | None, adapter: bool) -> tuple[str, ...]:
    """Say, in sentences, what was edited, how strongly and how; nothing where no layer was."""
    edited = [layer for layer in layers if layer.holds]
    if not edited:
        return ()
    said = [_which(layers), _components(layers), _strengths(edited), _directions(edited, agreement)]
    kept = {layer.kept for layer in edited if layer.layer is not None}
    if kept == {"column"}:
        said.append("The norm of what each input writes was kept (norm-preserving).")
    elif kept == {"row"}:
        said.append("The norms of the rows were kept (row-renormalised, as Heretic does).")
    if {layer.frame for layer in edited} & {"rows of length one"}:
        said.append("The direction is one of the weights with rows brought to length one.")
    if adapter:
        said.append("The candidate is a LoRA adapter: the base's weights are as they were.")
    return tuple(one for one in said if one)


def strength_of(layer: Layer) -> float:
    """The strength along the first direction, of the components in which the identity holds."""
    return layer.along[0].strength


def _which(layers: Sequence[Layer]) -> str:
    """All blocks, or a window of them."""
    blocks = {layer.layer for layer in layers if layer.layer is not None}
    edited = {layer.layer for layer in layers if layer.holds and layer.layer is not None}
    numbers = sorted(edited)
    if not numbers:
        return "No block is edited."
    if len(numbers) == len(blocks):
        return f"All {len(blocks)} blocks are edited."
    if numbers[-1] - numbers[0] + 1 == len(numbers):
        return f"Blocks {numbers[0]} to {numbers[-1]} of {len(blocks)} are edited: a window."
    return f"{len(numbers)} of {len(blocks)} blocks are edited: {', '.join(map(str, numbers))}."


def _components(layers: Sequence[Layer]) -> str:
    """Which components are edited, and which are not."""
    edited: dict[str, None] = {}
    left: dict[str, None] = {}
    for layer in layers:
        for part in layer.parts:
            where = edited if part.holds else left
            where[part.component] = None
    untouched = [name for name in left if name not in edited]
    words = f"Edited: {', '.join(edited)}" if edited else "The components are edited together"
    return f"{words}; not: {', '.join(untouched)}." if untouched else f"{words}."


def _strengths(edited: Sequence[Layer]) -> str:
    """One strength, a tent, or strengths that vary; what they mean."""
    blocks = [layer for layer in edited if layer.layer is not None] or list(edited)
    by_part: dict[str, list[float]] = {}
    for layer in blocks:
        for part in layer.parts:
            if part.holds:
                by_part.setdefault(part.component, []).append(part.along[0].strength)
    values = [value for part in by_part.values() for value in part]
    values = values or [strength_of(layer) for layer in blocks]
    if max(values) - min(values) <= 2 * SAME:
        return f"{_meaning(fmean(values))}, the same everywhere."
    said = [f"{name}: {_shape(part)}" for name, part in by_part.items()]
    return f"The strength differs. {'; '.join(said)}."


def _shape(values: Sequence[float]) -> str:
    """How the strengths of one component run over the layers."""
    low, high = min(values), max(values)
    if high - low <= 2 * SAME:
        return f"{fmean(values):.2f} throughout"
    peak = max(range(len(values)), key=values.__getitem__)
    rises = all(b >= a - SAME for a, b in pairwise(values[: peak + 1]))
    falls = all(b <= a + SAME for a, b in pairwise(values[peak:]))
    kind = "a tent" if rises and falls else "uneven"
    return f"{kind}, {low:.2f} to {high:.2f}"


def _meaning(strength: float) -> str:
    if abs(strength - 1) <= EXACT:
        return f"Strength {strength:.3f}: a full projection"
    if abs(strength - 2) <= EXACT:
        return f"Strength {strength:.3f}: a reflection (Householder)"
    if strength < 0:
        return f"Strength {strength:.3f}: the direction was strengthened, not taken out"
    kind = "partial projection" if strength < 1 else "more than a projection"
    return (
        f"Strength {strength:.3f}: a {kind}" if strength < 1 else f"Strength {strength:.3f}: {kind}"
    )


def _directions(edited: Sequence[Layer], agreement: float | None) -> str:
    count = mode(sum(one.holds for one in layer.along) or 1 for layer in edited)
    many = "One direction" if count == 1 else f"{count} directions"
    apart = {layer.layer for layer in edited if len(layer.parts) == 1 and layer.layer is not None}
    if len(apart) < sum(layer.layer in apart for layer in edited):
        return f"{many} for each component of a layer (mean cosine {agreement or 0:.3f})."
    if agreement is None or len(edited) < 2:
        return f"{many}."
    if agreement >= AGREE:
        return f"{many}, the same in every edited layer (mean cosine {agreement:.3f})."
    return f"{many} in each layer, not the same everywhere (mean cosine {agreement:.3f})."
