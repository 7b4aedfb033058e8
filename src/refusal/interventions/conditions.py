"""The conditions under which a model is measured: by name, so that files and tables can say which.

A condition is ``baseline``, an action (``ablation``, ``subtraction``, ``addition``) with the
direction itself, or an action with a control direction: ``random-3-ablation``,
``shuffled-addition``, ``matched-subtraction``.
"""

from refusal.core.records import Direction, Label
from refusal.interventions.ablate_add import Ablate, Add

BASELINE = "baseline"
# What the method claims: ablation and subtraction stop refusal, addition causes it, ablation leaves
# the rest alone.
ACTIONS: dict[Label, tuple[str, ...]] = {
    "harmful": ("ablation", "subtraction"),
    "harmless": ("ablation", "addition"),
}
STOPPING = ("ablation", "subtraction")  # what is to stop refusal, and should change nothing else
CONDITIONS = tuple(
    (label, condition) for label, actions in ACTIONS.items() for condition in (BASELINE, *actions)
)


def intervention(action: str, direction: Direction) -> Ablate | Add:
    """What an action does with a direction."""
    table: dict[str, Ablate | Add] = {
        "ablation": Ablate(direction),
        "subtraction": Add(direction, alpha=-1.0),
        "addition": Add(direction, alpha=1.0),
    }
    return table[action]


def interventions_for(condition: str, direction: Direction) -> tuple[Ablate | Add, ...]:
    """What a condition does to the model, given the direction that it is about."""
    if condition == BASELINE:
        return ()
    return (intervention(condition.rpartition("-")[2], direction),)


def random_group(condition: str) -> str | None:
    """What the random directions of an action are called together (``random-ablation``); ``None``
    for the others.
    """
    kind, _, rest = condition.partition("-")
    return f"random-{rest.partition('-')[2]}" if kind == "random" else None
