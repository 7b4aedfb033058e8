"""Which first tokens mean a refusal: presets for the paper's families, else what the model really
says.

For a model nobody listed: complete some training prompts, judge the completions, and rank first
tokens by ``P(token | refusal) - P(token | compliance)``; keep enough to cover the refusals'
probability mass.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.core.errors import ConfigError, TooFewPromptsError
from refusal.core.records import PromptPair, RefusalTokens
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
MIN_JUDGED = 3
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


def choose_tokens(model: ChatModel, prompts: PromptPair) -> RefusalTokens:
    """Choose ``R`` from completions of the first 32 harmful and 16 harmless prompts.

    Raises:
        TooFewPromptsError: fewer than 3 refusals or fewer than 3 compliances: there is nothing to
            tell apart.
    """
    harmless = prompts.harmless[: CHOOSE_PROMPTS // 2]
    chosen = [*prompts.harmful[:CHOOSE_PROMPTS], *harmless]
    texts = [prompt.text for prompt in chosen]
    questions = [prompt.question for prompt in chosen]
    outputs, logits = generate_and_read(
        model, questions, CHOOSE_NEW_TOKENS, name="find the refusal tokens"
    )
    labels = [
        refusal_verdict(text, output).label for text, output in zip(texts, outputs, strict=True)
    ]
    refused = [i for i, label in enumerate(labels) if label in ("refusal", "partial")]
    complied = [i for i, label in enumerate(labels) if label == "compliance"]
    if min(len(refused), len(complied)) < MIN_JUDGED:
        thinking = sum(not split(output).finished for output in outputs)
        lost = (
            f" ({thinking} were still thinking after {CHOOSE_NEW_TOKENS} tokens)"
            if thinking
            else ""
        )
        raise TooFewPromptsError(
            f"Of {len(texts)} training prompts the model refused {len(refused)} and answered "
            f"{len(complied)}{lost}; at least {MIN_JUDGED} of each are needed to find its refusal "
            "tokens. Give them with --refusal-tokens, or use prompts that it refuses."
        )
    probability = softmax64(logits)
    on_refusal, on_compliance = probability[refused].mean(0), probability[complied].mean(0)
    ids = rank_tokens(on_refusal, on_compliance)
    values = refusal_metric(logits, ids).tolist()
    score = auroc([values[i] for i in refused], [values[i] for i in complied])
    if score is not None and score < GOOD_AUROC:
        log.warning(
            "The refusal metric tells refusals from answers only with AUROC %.2f (below %.1f): "
            "look at the tokens, or give your own with --refusal-tokens.",
            score,
            GOOD_AUROC,
        )
    return RefusalTokens(
        ids=tuple(ids),
        texts=_texts(model, ids),
        source="chosen from completions",
        probabilities=tuple(float(on_refusal[i]) for i in ids),
        auroc=score,
        judged_refusals=len(refused),
        judged=len(refused) + len(complied),
    )


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
