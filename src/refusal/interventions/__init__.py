"""What is done to the residual stream while the model runs, and the conditions named after it."""

from refusal.core.registry import Registry
from refusal.interventions.action import Action

_HERE = "refusal.interventions"

INTERVENTIONS = Registry(
    "intervention",
    {
        "ablation": Action(f"{_HERE}.ablate_add:Ablate", ("harmful", "harmless"), stops=True),
        "subtraction": Action(f"{_HERE}.ablate_add:subtract", ("harmful",), stops=True),
        "addition": Action(f"{_HERE}.ablate_add:Add", ("harmless",)),
        "affine": Action(
            f"{_HERE}.affine:to_harmless_mean",
            ("harmful", "harmless"),
            stops=True,
            told_by=f"{_HERE}.affine:levels",
        ),
    },
)
