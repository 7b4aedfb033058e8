"""Completions under the conditions, judged by the built-in detector."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from refusal.core.direction import Direction
from refusal.core.errors import LeakageError
from refusal.core.records import Completion, Prompt
from refusal.detector.verdict import refusal_verdict
from refusal.engines.hooks import HOOKS
from refusal.engines.protocol import Engine, Job
from refusal.interventions import INTERVENTIONS
from refusal.interventions.conditions import Condition
from refusal.interventions.side_by_side import SideBySide
from refusal.model.chat_model import ChatModel
from refusal.model.generation import generate_each


def generate_under(
    model: ChatModel,
    direction: Direction,
    prompts: Sequence[Prompt],
    condition: str,
    max_new_tokens: int,
    name: str,
    engine: Engine = HOOKS,
) -> tuple[Completion, ...]:
    """Greedy completions of ``prompts`` under a condition of ``direction``.

    Args:
        engine: who writes them, if it can under this condition; else the model itself does.

    Raises:
        LeakageError: the direction was found or chosen with one of the prompts.
        EngineError: the engine cannot be asked, or is of another model.
    """
    check_untouched(prompts, direction)
    texts, what = [p.text for p in prompts], f"generate: {name}, {condition}"
    writer = engine if engine.serves(condition) else HOOKS
    return _judged(
        prompts, writer.generate(Job(model, direction, condition, texts, max_new_tokens, what))
    )


def generate_controls(
    model: ChatModel,
    controls: Mapping[str, Direction],
    prompts: Sequence[Prompt],
    action: str,
    max_new_tokens: int,
    name: str,
) -> dict[str, tuple[Completion, ...]]:
    """Write completions under an action of every control direction, by condition, all of them side
    by side.
    """
    for control in controls.values():
        check_untouched(prompts, control)
    outputs = generate_each(
        model,
        [[prompt.text for prompt in prompts]] * len(controls),
        SideBySide([INTERVENTIONS[action].make(control) for control in controls.values()]),
        max_new_tokens,
        name=f"generate: {name}, {action} with {len(controls)} controls",
    )
    return {
        Condition(action, control).name: _judged(prompts, output)
        for control, output in zip(controls, outputs, strict=True)
    }


def check_untouched(prompts: Sequence[Prompt], direction: Direction) -> None:
    """Raise LeakageError if the direction was found or chosen with one of the prompts."""
    leaked = [prompt for prompt in prompts if prompt.fingerprint in direction.seen]
    if leaked:
        raise LeakageError(
            f"{len(leaked)} of {len(prompts)} prompts to test on took part in finding the "
            f"direction, the first of them {leaked[0].id!r}. Test on prompts that are not in the "
            "training or validation split."
        )


def _judged(prompts: Sequence[Prompt], outputs: Sequence[str]) -> tuple[Completion, ...]:
    return tuple(
        Completion(prompt.id, prompt.text, output, refusal_verdict(prompt.text, output).label)
        for prompt, output in zip(prompts, outputs, strict=True)
    )


def judged_again(completions: Sequence[Completion]) -> tuple[Completion, ...]:
    """Give completions the verdicts of the detector as it is now."""
    return tuple(
        replace(row, verdict=refusal_verdict(row.prompt, row.completion).label)
        for row in completions
    )
