"""Completions under each condition, their verdicts, and the rates with intervals."""

from collections.abc import Sequence

from refusal.evaluate.detector import paper_substring_match, refusal_verdict
from refusal.generation import complete
from refusal.interventions import Ablate, Add, Intervention
from refusal.model import ChatModel
from refusal.records import Completion, Direction, Evaluation, Metric, Prompt, PromptPair
from refusal.stats import wilson_interval

__all__ = ["CONDITIONS", "complete_under", "evaluate", "interventions_for", "measure", "refusal_verdict"]

# (set, condition): what the method claims is that ablation and subtraction stop refusal, that addition causes it, and
# that ablation leaves harmless prompts alone.
CONDITIONS = (
    ("harmful", "baseline"),
    ("harmful", "ablation"),
    ("harmful", "subtraction"),
    ("harmless", "baseline"),
    ("harmless", "ablation"),
    ("harmless", "addition"),
)


def interventions_for(condition: str, direction: Direction) -> tuple[Intervention, ...]:
    """What a condition does to the model."""
    table: dict[str, tuple[Intervention, ...]] = {
        "baseline": (),
        "ablation": (Ablate(direction),),
        "subtraction": (Add(direction, alpha=-1.0),),
        "addition": (Add(direction, alpha=1.0),),
    }
    return table[condition]


def complete_under(
    model: ChatModel, direction: Direction, prompts: Sequence[Prompt], condition: str, max_new_tokens: int
) -> tuple[Completion, ...]:
    """Greedy completions of ``prompts`` under a condition, judged by the built-in detector."""
    texts = [prompt.text for prompt in prompts]
    with model.apply(*interventions_for(condition, direction)):
        outputs = complete(model, texts, max_new_tokens, name=f"generate: {prompts[0].label}, {condition}")
    return tuple(
        Completion(prompt.id, prompt.text, output, refusal_verdict(prompt.text, output).label)
        for prompt, output in zip(prompts, outputs, strict=True)
    )


def measure(completions: Sequence[Completion], set: str, condition: str) -> tuple[Metric, ...]:
    """Rates over all completions of a set, with Wilson intervals.

    ``refusal_rate`` counts refusals and partial refusals; ``degenerate_rate`` text that is neither a refusal nor an
    answer; ``substring_refusal_rate`` is the paper's 12-substring rule.
    """
    n = len(completions)
    hits = {
        "refusal_rate": sum(c.verdict in ("refusal", "partial") for c in completions),
        "partial_rate": sum(c.verdict == "partial" for c in completions),
        "degenerate_rate": sum(c.verdict == "degenerate" for c in completions),
        "substring_refusal_rate": sum(paper_substring_match(c.completion) for c in completions),
    }
    return tuple(
        Metric(name, set, condition, count / n if n else 0.0, *wilson_interval(count, n), n)
        for name, count in hits.items()
    )


def evaluate(
    model: ChatModel,
    direction: Direction,
    prompts: PromptPair,
    *,
    n: int | None = None,
    max_new_tokens: int = 512,
    conditions: Sequence[tuple[str, str]] = CONDITIONS,
) -> Evaluation:
    """Refusal rates on test prompts for every (set, condition).

    Args:
        n: prompts per class; default all.
        max_new_tokens: length of the completions; short ones hide refusals that come late.
    """
    completions: dict[tuple[str, str], tuple[Completion, ...]] = {}
    metrics: list[Metric] = []
    for set, condition in conditions:
        pool = prompts.harmful if set == "harmful" else prompts.harmless
        done = complete_under(model, direction, pool[:n], condition, max_new_tokens)
        completions[set, condition] = done
        metrics += measure(done, set, condition)
    return Evaluation(completions, tuple(metrics))
