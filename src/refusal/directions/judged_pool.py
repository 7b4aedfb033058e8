"""Prompts of a pool with judged completions, until enough of them pass: the filter that presumes
nothing of how refusals begin.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from refusal.core.filters import Judged, passes_judged
from refusal.core.records import Label, Prompt, RefusalTokens
from refusal.detector.verdict import refusal_verdict
from refusal.directions.refusal_metric import refusal_metric
from refusal.model.chat_model import ChatModel
from refusal.model.generation import generate_and_read

LEAST_SHARE = 0.25  # that is presumed to pass: a batch is no larger than four times what is missing


@dataclass(frozen=True)
class Reading:
    """How completions are had.

    Attributes:
        tokens: of the metric, if there are some. new: most tokens of a completion.
        known: completions that are there already, by prompt id. share: of the prompts that should
            pass; how many are completed at once depends on it, and nothing else.
    """

    tokens: RefusalTokens | None
    new: int
    known: Mapping[str, Judged] = field(default_factory=dict)
    share: float = 1.0


def draw_judged(
    model: ChatModel, pool: Sequence[Prompt], label: Label, n: int, how: Reading
) -> tuple[Judged, ...]:
    """The first prompts of ``pool`` with their completions, up to the ``n``-th that passes: refused
    if harmful, answered if harmless.
    """
    rows: list[Judged] = []
    passed = 0
    while passed < n and len(rows) < len(pool):
        ahead = math.ceil((n - passed) / max(how.share, LEAST_SHARE)) + 1
        for row in _judged(model, pool[len(rows) : len(rows) + ahead], how, label):
            rows.append(row)
            passed += passes_judged(label, row)
            if passed == n:
                break
    return tuple(rows)


def _judged(
    model: ChatModel, prompts: Sequence[Prompt], how: Reading, label: Label
) -> list[Judged]:
    """Completions of prompts, those that are not known written side by side."""
    found = {p.id: how.known[p.id] for p in prompts if p.id in how.known}
    new = [prompt for prompt in prompts if prompt.id not in found]
    if new:
        questions = [prompt.question for prompt in new]
        name = f"filter {label}: completions"
        outputs, logits = generate_and_read(model, questions, how.new, name)
        metrics: list[float | None] = [None] * len(new)
        if how.tokens is not None:
            metrics = list(refusal_metric(logits, how.tokens.ids).tolist())
        for prompt, output, metric in zip(new, outputs, metrics, strict=True):
            verdict = refusal_verdict(prompt.text, output).label
            about = (prompt.id, prompt.text, output, verdict)
            found[prompt.id] = Judged(*about, before=prompt.before, metric=metric)
    return [found[prompt.id] for prompt in prompts]
