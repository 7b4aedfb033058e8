"""How much refusal is left under the strongest edit that a budget allows, attack by attack.

``ATTACKS`` is the table: an attack is a class in ``attacks/`` and a line here.
"""

from refusal.core.registry import Registry

_HERE = "refusal.evaluations.audit.attacks"

ATTACKS = Registry(
    "attack",
    {
        "textbook": f"{_HERE}.forms:Textbook",
        "affine": f"{_HERE}.forms:Affine",
        "projected": f"{_HERE}.forms:Projected",
        "per-layer": f"{_HERE}.forms:PerLayer",
        "norms-kept": f"{_HERE}.forms:NormPreserving",
        "kernel": f"{_HERE}.kernel:SearchedKernel",
        "strength": f"{_HERE}.forms:Strength",
        "rank": f"{_HERE}.rank:Rank",
        "iterated": f"{_HERE}.iterated:Iterated",
        "rdo": f"{_HERE}.gradient:Gradient",
        "system": f"{_HERE}.talk:System",
        "prefill": f"{_HERE}.talk:Prefill",
        "random": f"{_HERE}.random_rows:Random",
    },
)
