"""Repeat a run's split, extraction and selection with other seeds: does the same direction come
out?

Training and validation prompts are dealt out anew; the test prompts stay, so that the rates can be
compared. Each seed leaves ``seeds/<seed>.json`` (the choice),
``seeds/<seed>.direction.safetensors`` and its completions.
"""

import logging
from dataclasses import asdict

from refusal.config.run_config import RunConfig
from refusal.core.direction import Direction
from refusal.core.errors import NoCandidateError
from refusal.core.records import (
    CandidateScore,
    Metric,
    PromptSplits,
    RefusalTokens,
    finite,
    to_json,
)
from refusal.core.storage import file_sha256, write_json, write_jsonl
from refusal.core.strict_files import Saved, damaged, read_one
from refusal.directions.difference_in_means import difference_in_means
from refusal.directions.pool import collect
from refusal.directions.records import Selection
from refusal.directions.selection.select import select
from refusal.evaluations.refusal.completions import complete_under
from refusal.evaluations.refusal.rates import measure
from refusal.evaluations.refusal.stages import refresh_verdicts
from refusal.model.chat_model import ChatModel
from refusal.prompts.load import redealt
from refusal.runs.files import read_completions
from refusal.runs.folder import RunFolder, prompts_hash

log = logging.getLogger(__name__)

SCORES = ("position", "layer", "bypass", "induce", "kl")


class _Choice(Saved):
    seed: int
    score: CandidateScore | None
    qualified: bool


def repeat_seeds(
    folder: RunFolder,
    config: RunConfig,
    model: ChatModel,
    prompts: PromptSplits,
    tokens: RefusalTokens,
    selection: Selection,
) -> tuple[Metric, ...]:
    """For each further seed its scores, the cosine with the run's direction, and refusal under its
    ablation.
    """
    if config.seeds == 1:
        return ()
    score = selection.score
    found = [_exact(name, f"seed-{config.seed}", float(getattr(score, name))) for name in SCORES]
    for seed in range(config.seed + 1, config.seed + config.seeds):
        found += _one_seed(
            folder, config, model, redealt(prompts, seed), tokens, selection.direction, seed
        )
    return tuple(found)


def _one_seed(
    folder: RunFolder,
    config: RunConfig,
    model: ChatModel,
    prompts: PromptSplits,
    tokens: RefusalTokens,
    main: Direction,
    seed: int,
) -> list[Metric]:
    base = folder.path / "seeds"
    summary, file, written = (
        base / f"{seed}{end}" for end in (".json", ".direction.safetensors", ".ablation.jsonl")
    )
    test = prompts.test.harmful[: config.n_test]
    inputs = {
        "main": file_sha256(folder.path / "direction.safetensors"),
        "tokens": tokens.ids,
        "options": [
            config.n_train,
            config.n_val,
            config.filter,
            asdict(config.rule),
            config.layer_step,
        ],
        "prompts": prompts_hash(
            [p for pair in (prompts.train, prompts.val) for p in (*pair.harmful, *pair.harmless)]
        ),
        "test": prompts_hash(test),
        "max_new_tokens": config.max_new_tokens,
    }

    def work() -> None:
        collected = collect(
            model, prompts.train, n=config.n_train, tokens=tokens, filtered=config.filter, seed=seed
        )
        try:
            chosen = select(
                model,
                difference_in_means(collected),
                prompts.val,
                n=config.n_val,
                filtered=config.filter,
                rule=config.rule,
                layer_step=config.layer_step,
                resamples=0,
            )
        except NoCandidateError as error:
            log.warning("Seed %d: %s", seed, error)
            write_json(summary, {"seed": seed, "score": None, "qualified": False})
            write_jsonl(written, [])
            return
        direction = chosen.direction
        write_json(
            summary,
            {"seed": seed, "score": finite(to_json(chosen.score)), "qualified": chosen.qualified},
        )
        direction.save(file)
        done = complete_under(
            model, direction, test, "ablation", config.max_new_tokens, f"seed {seed}"
        )
        write_jsonl(written, to_json(done))

    folder.stage(f"seed {seed}", inputs, [summary, written], work)
    refresh_verdicts(folder, f"seed {seed}", [written])
    score: CandidateScore | None = read_one(summary, _Choice).score
    if score is None:
        return []
    condition = f"seed-{seed}"
    found = [
        _exact(name, condition, float(value))
        for name in SCORES
        if (value := getattr(score, name)) is not None
    ]
    other = Direction.load(file).vector
    if other.shape != main.vector.shape:
        raise damaged(
            file,
            f"direction: {len(other)} numbers, where the run's direction has {len(main.vector)}",
        )
    found.append(_exact("cosine", condition, float(main.vector @ other)))
    return [*found, *measure(read_completions(written), "harmful", f"{condition}-ablation")]


def _exact(name: str, condition: str, value: float) -> Metric:
    """A number that is not estimated from a sample."""
    return Metric(name, "direction", condition, value, value, value, 1)
