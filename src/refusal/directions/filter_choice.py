"""Which filter a run uses, and its refusal tokens: by what a sample of training prompts shows.

``metric`` is the published rule, ``none`` none; they are decided beforehand and only looked at.
``completions`` reads whole answers. ``auto`` is ``metric`` unless judged completions say that its
threshold fits badly, or that refusals come too late for a metric of first tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from refusal.config.run_config import RunConfig
from refusal.core.filters import (
    FITTING,
    FilterChoice,
    Judged,
    Passing,
    fit_metric,
    passes_judged,
    passing,
)
from refusal.core.records import PromptPair, RefusalTokens
from refusal.core.stats import rate
from refusal.directions.pool import passes
from refusal.directions.refusal_metric import refusal_metric
from refusal.directions.refusal_tokens import (
    CHOOSE_NEW_TOKENS,
    Sample,
    check_told_apart,
    chosen_from,
    given_tokens,
    held_out_metrics,
    preset_tokens,
    ranked_tokens,
    sampled,
    take_sample,
    tokens_for,
    warn_of_auroc,
    weighty_tokens,
)
from refusal.model.chat_model import ChatModel
from refusal.model.forward import last_logits

HALF = 0.5  # of the harmful prompts: if fewer are refused in a few tokens, whole answers are read
WHOLE = "read whole answers"


@dataclass(frozen=True)
class Found:
    """The tokens (``None``: none that carry weight), the filter, and completions that were judged
    for it as a filter by completions wants them.
    """

    tokens: RefusalTokens | None
    choice: FilterChoice
    rows: tuple[Judged, ...] = ()


def choose_filter(model: ChatModel, train: PromptPair, config: RunConfig) -> Found:
    """The filter that ``config.filter`` asks for, or the one that a sample speaks for.

    Raises:
        ConfigError: a refusal token that is given is none of the model's.
        TooFewPromptsError: the model refuses or answers fewer than 3 of the prompts tried.
    """
    wanted = config.refusal_tokens
    if config.filter == "none":
        tokens = tokens_for(model, train, wanted)
        return Found(tokens, FilterChoice("none", False, "All prompts count, as asked for."))
    known = given_tokens(model, wanted) if wanted else preset_tokens(model)
    if config.filter == "completions":
        sample = take_sample(model, train, config.judged_tokens, WHOLE)
        return _by_completions(model, sample, known, "as asked for", automatic=False)
    if config.filter == "auto":
        return _known(model, train, known, config) if known else _unknown(model, train, config)
    why = "Prompts are filtered by the sign of the refusal metric, as asked for"
    if known is not None:
        return Found(known, _by_metric(model, train, known, f"{why}.", False))
    sample = take_sample(model, train, CHOOSE_NEW_TOKENS)
    tokens = ranked_tokens(model, sample)
    warn_of_auroc(tokens)
    return Found(tokens, _of_sample(sample, held_out_metrics(sample), why, False))


def _known(model: ChatModel, train: PromptPair, tokens: RefusalTokens, config: RunConfig) -> Found:
    """With given tokens or a family's: whether prompts pass says whether it needs judging."""
    why = "Prompts are filtered by the sign of the refusal metric."
    choice = _by_metric(model, train, tokens, why, True)
    if min(_most(choice.harmful), _most(choice.harmless)) >= FITTING:
        return Found(tokens, choice)
    return _judge_whole(model, train, tokens, tokens, config)


def _unknown(model: ChatModel, train: PromptPair, config: RunConfig) -> Found:
    """Tokens chosen from short completions, which also say how well they fit."""
    sample = take_sample(model, train, CHOOSE_NEW_TOKENS)
    tokens = None
    if sample.told_apart:
        tokens = ranked_tokens(model, sample)
        found = _fitting(sample, held_out_metrics(sample))
        if found is not None and _most(found.harmful) >= HALF:
            warn_of_auroc(tokens)
            return Found(tokens, found)
    return _judge_whole(model, train, tokens, None, config)


def _judge_whole(
    model: ChatModel,
    train: PromptPair,
    tokens: RefusalTokens | None,
    known: RefusalTokens | None,
    config: RunConfig,
) -> Found:
    """In doubt: do ``tokens`` fit the verdicts on whole answers?"""
    sample = take_sample(model, train, config.judged_tokens, WHOLE)
    if known is not None and not sample.told_apart:
        why = "Prompts are filtered by the sign of the refusal metric: too few of a sample are "
        return Found(known, _by_metric(model, train, known, f"{why}refused, or answered.", True))
    check_told_apart(sample)
    if tokens is None:
        why = f"within {CHOOSE_NEW_TOKENS} tokens hardly any is seen to be refused"
        return _by_completions(model, sample, known, why, automatic=True)
    values = _metrics(sample, tokens) if known else held_out_metrics(sample)
    if (found := _fitting(sample, values)) is not None:
        # What fits are tokens of these verdicts, not those that a few words had suggested.
        chosen = known or ranked_tokens(model, sample)
        warn_of_auroc(chosen)
        return Found(chosen, found)
    fit = fit_metric(judged_rows(sample, values))
    assert fit is not None  # there is enough of both
    why = f"the threshold of the refusal metric, 0, fits badly, {fit.words}"
    return _by_completions(model, sample, known, why, automatic=True)


def _by_completions(
    model: ChatModel,
    sample: Sample,
    known: RefusalTokens | None,
    why: str,
    automatic: bool,
) -> Found:
    """Whole answers decide; of tokens that are not known, only those that carry weight are
    taken.
    """
    tokens = known
    if tokens is None and sample.told_apart:
        ids = weighty_tokens(sample)
        tokens = chosen_from(model, sample, ids) if ids else None
    rows = judged_rows(sample, _metrics(sample, tokens))
    hits = [passes_judged(p.label, row) for p, row in zip(sample.prompts, rows, strict=True)]
    choice = FilterChoice(
        "completions",
        automatic,
        f"Prompts are filtered by judged completions of {sample.new} tokens: {why}.",
        fit_metric(rows),
        sample.new,
        passing(sample.prompts, hits, "harmful"),
        passing(sample.prompts, hits, "harmless"),
    )
    return Found(tokens, choice, rows)


def _fitting(sample: Sample, values: Sequence[float | None]) -> FilterChoice | None:
    """The metric, where its threshold fits the verdicts."""
    why = "Prompts are filtered by the sign of the refusal metric"
    found = _of_sample(sample, values, why, True)
    return found if found.fit is not None and found.fit.fits else None


def _of_sample(
    sample: Sample, values: Sequence[float | None], why: str, automatic: bool
) -> FilterChoice:
    """The metric, with how well it fits a sample and how many of that pass."""
    fit = fit_metric(judged_rows(sample, values))
    pairs = zip(sample.prompts, values, strict=True)
    hits = [value is not None and passes(prompt.label, value) for prompt, value in pairs]
    counts = [passing(sample.prompts, hits, label) for label in ("harmful", "harmless")]
    words = f"{why}." if fit is None else f"{why}: {fit.words}."
    return FilterChoice("metric", automatic, words, fit, sample.new, *counts)


def _by_metric(
    model: ChatModel, train: PromptPair, tokens: RefusalTokens, why: str, automatic: bool
) -> FilterChoice:
    """The metric, with how many of a sample pass."""
    some = sampled(train)
    logits = last_logits(model, [prompt.question for prompt in some])
    values = refusal_metric(logits, tokens.ids).tolist()
    hits = [passes(prompt.label, value) for prompt, value in zip(some, values, strict=True)]
    return FilterChoice(
        "metric",
        automatic,
        why,
        harmful=passing(some, hits, "harmful"),
        harmless=passing(some, hits, "harmless"),
    )


def _metrics(sample: Sample, tokens: RefusalTokens | None) -> list[float | None]:
    """The metric of every prompt, where there are tokens."""
    if tokens is None:
        return [None] * len(sample.prompts)
    return list(refusal_metric(sample.logits, tokens.ids).tolist())


def judged_rows(sample: Sample, metrics: Sequence[float | None]) -> tuple[Judged, ...]:
    """The completions of a sample with the metric of their prompts."""
    parts = zip(sample.prompts, sample.outputs, sample.verdicts, metrics, strict=True)
    rows = []
    for p, text, label, metric in parts:
        rows.append(Judged(p.id, p.text, text, label, before=p.before, metric=metric))
    return tuple(rows)


def _most(some: Passing | None) -> float:
    """The upper limit of the share that passes."""
    if some is None:
        return 1.0
    return rate([i < some.passed for i in range(some.tried)]).high


def expected(some: Passing, pool: int) -> tuple[float, float, float]:
    """How many of a pool should pass, by a sample of it, and the limits of that."""
    share = rate([i < some.passed for i in range(some.tried)])
    return share.value * pool, share.low * pool, share.high * pool
