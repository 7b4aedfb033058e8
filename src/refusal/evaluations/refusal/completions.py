"""Completions under the conditions, judged by the built-in detector."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from refusal.core.direction import Direction
from refusal.core.errors import LeakageError
from refusal.core.records import Completion, Cut, Prompt, Written
from refusal.core.sampling import GREEDY, Sampling
from refusal.detector.verdict import refusal_verdict
from refusal.engines.hooks import HOOKS
from refusal.engines.protocol import Engine, Job
from refusal.interventions.conditional import Gate, beside
from refusal.interventions.conditions import Condition
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
    """Greedy completions of ``prompts`` under a condition of ``direction``; `complete` draws them.

    Args:
        engine: who writes them, if it can under this condition; else the model itself does.

    Raises:
        LeakageError: the direction was found or chosen with one of the prompts.
        EngineError: the engine cannot be asked, or is of another model.
    """
    check_untouched(prompts, direction)
    if engine is HOOKS or not engine.serves(condition):
        wanted = Wanted(name, condition, direction, tuple(prompts))
        return complete(model, wanted, max_new_tokens)
    questions, what = [p.question for p in prompts], f"generate: {name}, {condition}"
    outputs = engine.generate(Job(model, direction, condition, questions, max_new_tokens, what))
    rows = []
    for prompt, output in zip(prompts, outputs, strict=True):
        verdict = refusal_verdict(prompt.text, output).label
        rows.append(Completion(prompt.id, prompt.text, output, verdict, before=prompt.before))
    return tuple(rows)


@dataclass(frozen=True)
class Wanted:
    """Completions of a set's prompts under a condition.

    Attributes:
        direction: what the condition is about; of a control, the control's. The baseline's does
            nothing.
        sampling: how they are drawn, if they are.
        gate: what decides of each prompt, where the condition acts by a monitor.
    """

    set_name: str
    condition: str
    direction: Direction
    prompts: tuple[Prompt, ...]
    sampling: Sampling = GREEDY
    gate: Gate | None = None


def complete(model: ChatModel, wanted: Wanted, max_new_tokens: int) -> tuple[Completion, ...]:
    """Completions of a set under a condition, the samples of a prompt one after another.

    Raises:
        LeakageError: the direction was found or chosen with one of the prompts.
    """
    found: list[Completion] = []
    generate_together(model, [wanted], max_new_tokens, lambda _, rows: found.extend(rows))
    return tuple(found)


def generate_together(
    model: ChatModel,
    wanted: Sequence[Wanted],
    max_new_tokens: int,
    finished: Callable[[Wanted, tuple[Completion, ...]], object],
) -> None:
    """Completions of several sets and conditions side by side, each told as soon as all of it is
    there; all of them are drawn alike, with the same numbers for the same prompt.

    Raises:
        LeakageError: a direction was found or chosen with a prompt that it is to be tested on.
    """
    for one in wanted:
        check_untouched(one.prompts, one.direction)
    edits = [Condition.named(one.condition).under(one.direction, one.gate) for one in wanted]
    named = [f"{one.set_name}, {one.condition}" for one in wanted[:1]]
    more = [f"and {len(wanted) - 1} more"] if len(wanted) > 1 else []
    generate_each(
        model,
        [[prompt.question for prompt in one.prompts] for one in wanted],
        beside(edits),
        max_new_tokens,
        " ".join(["generate:", *named, *more]),
        lambda i, outputs: finished(
            wanted[i], judged(wanted[i].prompts, outputs, wanted[i].sampling.numbers)
        ),
        wanted[0].sampling if wanted else GREEDY,
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
    wanted = controls_wanted(controls, prompts, action, name)
    found: dict[str, tuple[Completion, ...]] = {}
    generate_together(
        model, wanted, max_new_tokens, lambda one, rows: found.update({one.condition: rows})
    )
    return {one.condition: found[one.condition] for one in wanted}


def controls_wanted(
    controls: Mapping[str, Direction],
    prompts: Sequence[Prompt],
    action: str,
    set_name: str,
    sampling: Sampling = GREEDY,
) -> list[Wanted]:
    """Every control under an action."""
    wanted = []
    for name, control in controls.items():
        condition = Condition(action, name).name
        wanted.append(Wanted(set_name, condition, control, tuple(prompts), sampling))
    return wanted


def check_untouched(prompts: Sequence[Prompt], direction: Direction) -> None:
    """Raise LeakageError if the direction was found or chosen with one of the prompts."""
    leaked = [prompt for prompt in prompts if prompt.fingerprint in direction.seen]
    if leaked:
        raise LeakageError(
            f"{len(leaked)} of {len(prompts)} prompts to test on took part in finding the "
            f"direction, the first of them {leaked[0].id!r}. Test on prompts that are not in the "
            "training or validation split."
        )


def judged(
    prompts: Sequence[Prompt],
    outputs: Sequence[Written],
    numbers: Sequence[int | None] = GREEDY.numbers,
) -> tuple[Completion, ...]:
    """Completions of prompts with their verdicts, at every length that they were read at; of each
    prompt one for each of ``numbers``.
    """
    whose = [(prompt, n) for prompt in prompts for n in numbers]
    pairs = zip(whose, outputs, strict=True)
    return tuple(replace(_judged_one(prompt, output), sample=n) for (prompt, n), output in pairs)


def _judged_one(prompt: Prompt, output: Written) -> Completion:
    """One completion with its verdict, and at each length that it was read at."""
    cuts = []
    for tokens, text in output.earlier.items():
        shared = _shared(text, output.text)
        verdict = refusal_verdict(prompt.text, text).label
        cuts.append(Cut(tokens, shared, text[shared:], verdict))
    verdict = refusal_verdict(prompt.text, output.text).label
    about = (output.tokens, tuple(cuts), prompt.before)
    return Completion(prompt.id, prompt.text, output.text, verdict, *about)


def _shared(text: str, other: str) -> int:
    """How many first characters two texts have in common."""
    if other.startswith(text):
        return len(text)
    return next(
        (i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), len(other)
    )


def judged_again(completions: Sequence[Completion]) -> tuple[Completion, ...]:
    """Give completions the verdicts of the detector as it is now, at every length."""
    found = []
    for row in completions:
        cuts = []
        for cut in row.cuts:
            verdict = refusal_verdict(row.prompt, row.text_at(cut)).label
            cuts.append(replace(cut, verdict=verdict))
        whole = refusal_verdict(row.prompt, row.completion).label
        found.append(replace(row, verdict=whole, cuts=tuple(cuts)))
    return tuple(found)
