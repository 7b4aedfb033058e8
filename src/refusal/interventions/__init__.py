"""What is done to the residual stream while the model runs, and the conditions named after it."""

from refusal.core.registry import Registry

INTERVENTIONS = Registry(
    "intervention",
    {
        "ablation": "refusal.interventions.ablate_add:ablation",
        "subtraction": "refusal.interventions.ablate_add:subtraction",
        "addition": "refusal.interventions.ablate_add:addition",
        "affine": "refusal.interventions.affine:affine",
    },
)
