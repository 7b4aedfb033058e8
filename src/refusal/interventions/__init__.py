"""What is done to the residual stream while the model runs, and the conditions named after it."""

from refusal.core.registry import Registry
from refusal.interventions.action import Action

_HERE = "refusal.interventions"

_STRENGTH = (0, 1)  # numbers that may stand behind a name

INTERVENTIONS = Registry(
    "intervention",
    {
        "ablation": Action(
            f"{_HERE}.ablate_add:Ablate", ("harmful", "harmless"), stops=True, counts=_STRENGTH
        ),
        "subtraction": Action(
            f"{_HERE}.ablate_add:subtract", ("harmful",), stops=True, counts=_STRENGTH
        ),
        "addition": Action(f"{_HERE}.ablate_add:Add", ("harmless",), counts=_STRENGTH),
        "affine": Action(
            f"{_HERE}.affine:to_harmless_mean",
            ("harmful", "harmless"),
            stops=True,
            told_by=f"{_HERE}.affine:levels",
            counts=_STRENGTH,
        ),
        "projected": Action(
            f"{_HERE}.forms:projected",
            ("harmful", "harmless"),
            stops=True,
            told_by=f"{_HERE}.forms:projection_left",
            counts=_STRENGTH,
        ),
        "per_layer": Action(
            f"{_HERE}.forms:per_layer",
            ("harmful", "harmless"),
            stops=True,
            counts=_STRENGTH,
            by_layer=True,
        ),
        "kernel": Action(
            f"{_HERE}.forms:kernel", ("harmful", "harmless"), stops=True, counts=(4, 8)
        ),
    },
)
