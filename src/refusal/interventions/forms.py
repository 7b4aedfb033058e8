"""Other forms of ablation, made of a direction: projected, per layer, with a layer kernel."""

from collections.abc import Sequence
from dataclasses import replace

from refusal.core.direction import Direction
from refusal.core.errors import DirectionError
from refusal.core.records import Metric
from refusal.interventions.ablate_add import Ablate
from refusal.interventions.affine import harmless_mean
from refusal.interventions.kernel import Kernel

LEAST_LEFT = 1e-3  # of a direction that is projected


def projected(direction: Direction, alpha: float = 1.0) -> Ablate:
    """Ablation of ``r - (r . b) b``, with ``b`` the unit harmless mean at the direction's place:
    what all prompts have in common stays in the stream.

    Raises:
        DirectionError: no harmless mean is known, the direction has a subspace, or nothing of it is
            left.
    """
    return Ablate(project_direction(direction), alpha)


def project_direction(direction: Direction) -> Direction:
    """``r - (r . b) b`` as a direction, with the norm that is left of it; in float64.

    Raises:
        DirectionError: see `projected`.
    """
    if direction.rank > 1:
        raise DirectionError(
            f"Only a single direction is projected, and this one has a subspace of "
            f"{direction.rank} dimensions. Project the directions before they are made one."
        )
    mean = harmless_mean(direction).double()
    vector, length = direction.vector.double(), float(mean.norm())
    unit = mean / length if length else mean
    rest = vector - (vector @ unit) * unit
    left = float(rest.norm())
    if not left > LEAST_LEFT:
        raise DirectionError(
            f"Of the direction {left:.2g} is left beside the harmless mean, so there is nothing to "
            "project. Use ablation."
        )
    vector, norm = (rest / left).float(), direction.norm * left
    return replace(direction, vector=vector, norm=norm, basis=None, row_places=())


def projection_left(direction: Direction) -> Sequence[Metric]:
    """How much of the direction's norm is left, and its cosine with the harmless mean."""
    left = project_direction(direction).norm / direction.norm
    mean = harmless_mean(direction).double()
    cosine = float(direction.vector.double() @ mean / mean.norm())
    values = {"projected_norm_share": left, "harmless_mean_cosine": cosine}
    return [Metric(name, "direction", "projected", x, x, x, 1) for name, x in values.items()]


def per_layer(direction: Direction, alpha: float = 1.0) -> Ablate:
    """What block ``l`` writes loses the direction of layer ``l``.

    Raises:
        DirectionError: none is known of any layer.
    """
    if direction.by_layer is None:
        raise DirectionError(
            "No directions of the single layers stand beside this one, which per_layer needs. A "
            "run finds them with --interventions per_layer; in a run of an older version delete "
            "direction.safetensors first."
        )
    return Ablate(direction, alpha, per_layer=True)


def kernel(direction: Direction, *numbers: float) -> Ablate:
    """Ablation with a strength for every layer.

    Args:
        numbers: most, at, least and reach of a tent (`kernel.py`) for attention and MLPs, or of one
            for each.

    Raises:
        ConfigError: they make no kernel.
    """
    return Ablate(direction, kernel=Kernel.of(numbers))
