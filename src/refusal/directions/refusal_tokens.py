"""Which first tokens mean a refusal: presets for the paper's families, else what the model really
says.

For a model nobody listed: complete some training prompts, judge the completions, and rank first
tokens by ``P(token | refusal) - P(token | compliance)``; keep enough to cover the refusals'
probability mass.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.errors import ConfigError, TooFewPromptsError
from refusal.core.filters import MIN_JUDGED
from refusal.core.records import Prompt, PromptPair, RefusalTokens, VerdictLabel
from refusal.core.stats import auroc
from refusal.core.thinking import split
from refusal.detector.verdict import refusal_verdict
from refusal.directions.refusal_metric import refusal_metric, softmax64
from refusal.model.chat_model import ChatModel
from refusal.model.generation import generate_and_read

log = logging.getLogger(__name__)

COVERED_MASS = 0.95  # of what the positive-ranked tokens hold
MAX_TOKENS = 8
MIN_DIFFERENCE = 0.005
CONSIDERED = 64  # tokens that may carry weight: those of single refusals are among them
CHANCE = 0.5  # AUROC of what tells nothing apart
MOST_SHARE = 0.9  # of the vocabulary: more refusal tokens leave nothing for an answer
GOOD_AUROC = 0.9
CHOOSE_PROMPTS = 32
CHOOSE_NEW_TOKENS = 24


@dataclass(frozen=True)
class Preset:
    """A family of the paper: recognised by its template and by the ids its tokenizer gives the
    words.
    """

    family: str
    marker: str
    words: tuple[str, ...]
    ids: tuple[int, ...]
    model_types: tuple[str, ...]


# Arditi et al. 2024, appendix B, table 4. A model belongs to a family if type, template and token
# ids all agree.
PRESETS = (
    Preset("qwen", "<|im_start|>", ("I", "As"), (40, 2121), ("qwen",)),
    Preset("gemma", "<start_of_turn>", ("I",), (235285,), ("gemma",)),
    Preset("yi", "<|im_start|>", ("I",), (59597,), ("llama", "Yi")),
    Preset("llama-2", "[INST]", ("I",), (306,), ("llama",)),
    Preset("llama-3", "<|start_header_id|>", ("I",), (40,), ("llama",)),
)


def tokens_for(
    model: ChatModel, prompts: PromptPair, wanted: Sequence[str | int] | None = None
) -> RefusalTokens:
    """The refusal tokens: those ``wanted``, else the family's preset, else chosen from completions
    of ``prompts``.

    Raises:
        ConfigError: a wanted text is not one token of this tokenizer.
        TooFewPromptsError: the model refuses or answers fewer than 3 of the prompts tried.
    """
    if wanted:
        return given_tokens(model, wanted)
    return preset_tokens(model) or choose_tokens(model, prompts)


def given_tokens(model: ChatModel, wanted: Sequence[str | int]) -> RefusalTokens:
    """Tokens named by the user, as texts ("I") or ids (40, "40")."""
    ids = []
    for item in wanted:
        if isinstance(item, int) or item.lstrip("-").isdigit():
            ids.append(int(item))
        else:
            ids.append(_first_token(model, item))
    _check_ids(ids, _head_size(model))
    ids = list(dict.fromkeys(ids))  # "I" and its id are one token
    found = RefusalTokens(tuple(ids), _texts(model, ids), source="given")
    check_tokens(model, found)
    return found


def check_tokens(model: ChatModel, tokens: RefusalTokens) -> None:
    """Make sure that refusal tokens are some of a model's.

    Raises:
        ConfigError: one is not, or they are so many that the metric says nothing.
    """
    size = _head_size(model)
    _check_ids(tokens.ids, size)
    if len(tokens.ids) > MOST_SHARE * size:
        raise ConfigError(
            f"{len(tokens.ids)} of the model's {size} tokens are refusal tokens: whatever it says "
            "would count as a refusal. Give those that its refusals begin with, a few."
        )


def _check_ids(ids: Sequence[int], size: int) -> None:
    if bad := [i for i in ids if not 0 <= i < size]:
        raise ConfigError(
            f"Token id {bad[0]} is outside the vocabulary of {size}. Give ids below that, or texts."
        )


def _head_size(model: ChatModel) -> int:
    """How many tokens the model gives probabilities to."""
    head = model.hf.get_output_embeddings()
    size = None if head is None else getattr(head, "out_features", None)
    return int(size) if isinstance(size, int) else int(model.hf.config.get_text_config().vocab_size)


def preset_tokens(model: ChatModel) -> RefusalTokens | None:
    """The paper's tokens, when this model belongs to one of its families."""
    for preset in PRESETS:
        fits = model.hf.config.model_type in preset.model_types and preset.marker in str(
            model.tokenizer.chat_template
        )
        if not fits:
            continue
        pieces = [model.tokenizer.encode(word, add_special_tokens=False) for word in preset.words]
        if [piece[-1] for piece in pieces if len(piece) == 1] == list(preset.ids):
            return RefusalTokens(
                preset.ids, _texts(model, preset.ids), source=f"preset {preset.family}"
            )
    return None


@dataclass(frozen=True)
class Sample:
    """Some training prompts, what the model writes to them, and what a judge says of that.

    Attributes:
        logits: of each prompt's last token. new: most tokens that a completion could have.
    """

    prompts: tuple[Prompt, ...]
    outputs: tuple[str, ...]
    verdicts: tuple[VerdictLabel, ...]
    logits: Float[Tensor, "prompt vocab"]
    new: int

    @property
    def refused(self) -> list[int]:
        """Which are refusals, whole or partial."""
        return [i for i, label in enumerate(self.verdicts) if label in ("refusal", "partial")]

    @property
    def answered(self) -> list[int]:
        """Which are answers."""
        return [i for i, label in enumerate(self.verdicts) if label == "compliance"]

    @property
    def told_apart(self) -> bool:
        """Whether there is enough of both."""
        return min(len(self.refused), len(self.answered)) >= MIN_JUDGED


def sampled(prompts: PromptPair) -> tuple[Prompt, ...]:
    """The first 32 harmful and 16 harmless prompts."""
    return (*prompts.harmful[:CHOOSE_PROMPTS], *prompts.harmless[: CHOOSE_PROMPTS // 2])


def take_sample(
    model: ChatModel, prompts: PromptPair, new: int, name: str = "find the refusal tokens"
) -> Sample:
    """Completions of the first prompts, judged."""
    some = sampled(prompts)
    questions = [prompt.question for prompt in some]
    outputs, logits = generate_and_read(model, questions, new, name=name)
    pairs = zip(some, outputs, strict=True)
    verdicts = [refusal_verdict(prompt.text, output).label for prompt, output in pairs]
    return Sample(some, tuple(outputs), tuple(verdicts), logits, new)


def choose_tokens(model: ChatModel, prompts: PromptPair) -> RefusalTokens:
    """Choose ``R`` from completions of the first 32 harmful and 16 harmless prompts.

    Raises:
        TooFewPromptsError: fewer than 3 refusals or fewer than 3 compliances: there is nothing to
            tell apart.
    """
    sample = take_sample(model, prompts, CHOOSE_NEW_TOKENS)
    found = ranked_tokens(model, sample)
    warn_of_auroc(found)
    return found


def ranked_tokens(model: ChatModel, sample: Sample) -> RefusalTokens:
    """Choose ``R`` from a sample: the tokens that stand first in its refusals.

    Raises:
        TooFewPromptsError: it has fewer than 3 refusals or fewer than 3 answers.
    """
    check_told_apart(sample)
    probability = softmax64(sample.logits)
    means = [probability[some].mean(0) for some in (sample.refused, sample.answered)]
    return chosen_from(model, sample, rank_tokens(*means))


def warn_of_auroc(tokens: RefusalTokens) -> None:
    """Say so where the metric of tokens does not tell the sample's refusals from its answers."""
    if tokens.auroc is not None and tokens.auroc < GOOD_AUROC:
        log.warning(
            "The refusal metric tells refusals from answers only with AUROC %.2f (below %.1f): "
            "look at the tokens, or give your own with --refusal-tokens.",
            tokens.auroc,
            GOOD_AUROC,
        )


def check_told_apart(sample: Sample) -> None:
    """Raise TooFewPromptsError where a sample has too few refusals or answers."""
    if sample.told_apart:
        return
    thinking = sum(not split(output).finished for output in sample.outputs)
    lost = f" ({thinking} were still thinking after {sample.new} tokens)" if thinking else ""
    raise TooFewPromptsError(
        f"Of {len(sample.prompts)} training prompts the model refused {len(sample.refused)} and "
        f"answered {len(sample.answered)}{lost}; at least {MIN_JUDGED} of each are needed to find "
        f"its refusal tokens. Its completions were read to {sample.new} tokens. Give the tokens "
        "with --refusal-tokens, or use prompts that it refuses."
    )


def chosen_from(model: ChatModel, sample: Sample, ids: Sequence[int]) -> RefusalTokens:
    """Tokens as a record, with how well their metric tells the sample's refusals from answers."""
    on_refusal = softmax64(sample.logits)[sample.refused].mean(0)
    values = refusal_metric(sample.logits, ids).tolist()
    refused, answered = sample.refused, sample.answered
    return RefusalTokens(
        ids=tuple(ids),
        texts=_texts(model, ids),
        source="chosen from completions",
        probabilities=tuple(float(on_refusal[i]) for i in ids),
        auroc=auroc([values[i] for i in refused], [values[i] for i in answered]),
        judged_refusals=len(refused),
        judged=len(refused) + len(answered),
    )


def held_out_metrics(sample: Sample) -> list[float]:
    """The metric of every prompt by the tokens that are chosen from the other half of the sample:
    with tokens of its own completion among them, any would look right.

    Every second refusal, every second answer and every second of the rest are one half.
    """
    every = set(range(len(sample.prompts)))
    refused, answered = sample.refused, sample.answered
    rest = sorted(every - {*refused, *answered})
    probability = softmax64(sample.logits)
    found = [math.nan] * len(every)
    for half in (0, 1):
        means = [probability[some[1 - half :: 2]].mean(0) for some in (refused, answered)]
        mine = [i for some in (refused, answered, rest) for i in some[half::2]]
        values = refusal_metric(sample.logits[mine], rank_tokens(*means)).tolist()
        for i, value in zip(mine, values, strict=True):
            found[i] = value
    return found


def weighty_tokens(sample: Sample) -> list[int]:
    """Tokens that carry weight: ranked on one half of the completions, a token is taken if it
    raises the AUROC of the metric on the other half; none may be.

    Every second refusal and every second answer is held out.
    """
    probability = softmax64(sample.logits)
    refused, answered = sample.refused, sample.answered
    on_refusal, on_compliance = (probability[some[::2]].mean(0) for some in (refused, answered))
    difference = on_refusal - on_compliance
    order = torch.topk(difference, min(CONSIDERED, difference.numel()))
    ids: list[int] = []
    best = CHANCE
    for token in order.indices[order.values >= MIN_DIFFERENCE].tolist():
        if len(ids) == MAX_TOKENS:
            break
        values = refusal_metric(sample.logits, [*ids, token]).tolist()
        area = auroc([values[i] for i in refused[1::2]], [values[i] for i in answered[1::2]])
        if area is not None and area > best:
            ids.append(token)
            best = area
    return ids


def rank_tokens(
    on_refusal: Float[Tensor, "vocab"], on_compliance: Float[Tensor, "vocab"]
) -> list[int]:
    """Tokens by ``P(token | refusal) - P(token | compliance)``, until most of the refusal mass is
    covered.
    """
    difference = on_refusal - on_compliance
    top = torch.topk(difference, min(MAX_TOKENS, difference.numel()))
    useful = top.indices[top.values >= MIN_DIFFERENCE].tolist() or [int(top.indices[0])]
    mass = sum(float(on_refusal[i]) for i in useful)
    ids: list[int] = []
    covered = 0.0
    for i in useful:
        if covered >= COVERED_MASS * mass:
            break
        ids.append(i)
        covered += float(on_refusal[i])
    return ids


def _first_token(model: ChatModel, text: str) -> int:
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise ConfigError(
            f"{text!r} is {len(ids)} tokens for this tokenizer, a refusal token is one. "
            f"Give its first token's id ({ids[0] if ids else 'none'}) or another word."
        )
    return int(ids[0])


def _texts(model: ChatModel, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(str(model.tokenizer.decode([i])) for i in ids)
