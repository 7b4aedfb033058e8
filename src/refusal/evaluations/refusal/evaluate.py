"""What the interventions do: completions under each condition, their verdicts, and the rates with
intervals.
"""

from collections.abc import Mapping

from refusal.core.direction import Direction
from refusal.core.records import Completion, Evaluation, PromptPair
from refusal.detector.verdict import refusal_verdict
from refusal.evaluations.refusal.completions import (
    Wanted,
    controls_wanted,
    generate_controls,
    generate_together,
    generate_under,
)
from refusal.evaluations.refusal.curves import curves
from refusal.evaluations.refusal.rates import measure, measure_all
from refusal.interventions.conditions import BASELINE, CONDITIONS, interventions_for
from refusal.model.chat_model import ChatModel

__all__ = [
    "CONDITIONS",
    "evaluate",
    "generate_controls",
    "generate_under",
    "interventions_for",
    "measure",
    "measure_all",
    "refusal_verdict",
]

N_CONTROL = 32


def evaluate(
    model: ChatModel,
    direction: Direction,
    prompts: PromptPair,
    *,
    n: int | None = None,
    max_new_tokens: int = 512,
    controls: Mapping[str, Direction] | None = None,
    n_control: int = N_CONTROL,
) -> Evaluation:
    """Refusal rates on test prompts for every (set, condition), how they differ from the baseline,
    and how they grow with the completions' length.

    Args:
        n: prompts per class; default all.
        max_new_tokens: length of the completions; short ones hide refusals that come late.
        controls: other directions to do the same with, by name (``refusal.control_directions``).
        n_control: test prompts a class that those are run on.

    Raises:
        LeakageError: the direction was found or chosen with one of the prompts.
    """
    pools = {"harmful": prompts.harmful[:n], "harmless": prompts.harmless[:n]}
    wanted = [Wanted(name, action, direction, pools[name]) for name, action in CONDITIONS]
    for set_name, action in CONDITIONS:
        if controls and action != BASELINE:
            wanted += controls_wanted(controls, pools[set_name][:n_control], action, set_name)
    found: dict[tuple[str, str], tuple[Completion, ...]] = {}
    generate_together(
        model,
        wanted,
        max_new_tokens,
        lambda one, rows: found.update({(one.set_name, one.condition): rows}),
    )
    completions = {
        (one.set_name, one.condition): found[one.set_name, one.condition] for one in wanted
    }
    metrics = (*measure_all(completions), *curves(completions, max_new_tokens))
    return Evaluation(completions, metrics)
