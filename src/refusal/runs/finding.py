"""The stages that find the direction: refusal tokens, activations, selection."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from refusal.core.errors import NoCandidateError
from refusal.core.records import Metric, finite, to_json
from refusal.core.storage import file_sha256, write_json, write_tensors
from refusal.core.valid import check_place, check_width
from refusal.core.work import Read, Search, Work, Write
from refusal.directions.difference_in_means import difference_in_means
from refusal.directions.pool import collect
from refusal.directions.refusal_tokens import CHOOSE_NEW_TOKENS, CHOOSE_PROMPTS, tokens_for
from refusal.directions.selection.rule import explain
from refusal.directions.selection.select import select
from refusal.model.chat_model import ChatModel
from refusal.runs.files import read_tokens
from refusal.runs.folder import prompts_hash
from refusal.runs.inputs import check_prompts
from refusal.runs.records import read_candidates, read_selection
from refusal.runs.stage import Plan, Run, Stage

DRAWN = 1.4  # prompts read for each that passes the filter
POSITIONS = 5  # tokens after the instruction: that many candidates a layer
SCORED = 0.07  # of a triple loop's tokens: early exit, and induce starts in the middle
LOOKED = 12.0  # prompts for each candidate besides: what it takes to see that it fails
LOOKS = 3.0  # passes for each candidate


class Tokens(Stage):
    """The tokens whose probability says that a refusal begins."""

    name = "tokens"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Completions of a few training prompts, unless the tokens are given."""
        if plan.config.refusal_tokens:
            return ()
        rows, length = 2 * CHOOSE_PROMPTS, plan.lengths.train
        return Write(rows, CHOOSE_NEW_TOKENS, length), Read(rows, length)

    def work(self, run: Run) -> Iterable[Metric]:
        """Leave them in ``refusal_tokens.json``."""
        path, train = run.folder.path / "refusal_tokens.json", self.asked.prompts.train
        inputs = {
            "train": prompts_hash([*train.harmful, *train.harmless]),
            "given": run.config.refusal_tokens,
            "seed": run.config.seed,
        }

        def work() -> None:
            write_json(path, to_json(tokens_for(run.model, train, run.config.refusal_tokens)))

        self.do(run, "", inputs, [path], work, self.costs(run.plan))
        run.tokens = read_tokens(run.folder.path)
        return ()


class Extract(Stage):
    """Mean activations of both classes at every position and layer, and their differences."""

    name = "extract"

    def check(self, model: ChatModel) -> None:
        """Every training prompt must fit into the model's context."""
        train = self.asked.prompts.train
        check_prompts(model, [*train.harmful, *train.harmless])

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """The training prompts of both classes."""
        return (Read(2 * drawn(plan) * plan.config.n_train, plan.lengths.train),)

    def work(self, run: Run) -> Iterable[Metric]:
        """Leave the candidates in ``candidates.safetensors``."""
        config, train = run.config, self.asked.prompts.train
        path = run.folder.path / "candidates.safetensors"
        needs_all = config.filter or config.full_map  # the filter looks at the model's output
        layers = None if needs_all else config.rule.eligible_layers(run.model.sites.n_layers)
        inputs = {
            "train": prompts_hash([*train.harmful, *train.harmless]),
            "tokens": run.refusal_tokens.ids,
            "n": config.n_train,
            "filter": config.filter,
            "layers": layers,
            "seed": config.seed,
        }

        def work() -> None:
            activations = collect(
                run.model,
                train,
                n=config.n_train,
                tokens=run.refusal_tokens,
                filtered=config.filter,
                layers=layers,
                seed=config.seed,
            )
            counts = {
                "harmful": asdict(activations.harmful_count),
                "harmless": asdict(activations.harmless_count),
            }
            metadata = {
                "counts": json.dumps(finite(counts)),
                "model": run.model.name,
                "suffix": json.dumps(run.model.chat.suffix_tokens),
                "seen": json.dumps(sorted(activations.seen)),
            }
            vectors = difference_in_means(activations).vectors
            write_tensors(path, {"candidates": vectors}, metadata)

        self.do(run, "", inputs, [path], work, self.costs(run.plan))
        folder = run.folder.path
        run.candidates = read_candidates(folder, run.refusal_tokens, run.model.name, config.seed)
        return ()


class Select(Stage):
    """The candidate that the rule chooses on validation prompts."""

    name = "select"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """The validation prompts unmodified, and again under every candidate."""
        config, length = plan.config, plan.lengths.val
        layers = range(0, config.rule.eligible_layers(plan.layers), config.layer_step)
        candidates = POSITIONS * len(layers)
        literal = 3.0 * candidates * config.n_val * length
        tokens = literal if config.full_map else SCORED * literal + LOOKED * length * candidates
        search = Search(tokens, LOOKS * candidates, config.n_val * length, config.n_val)
        return search, Read(2 * drawn(plan) * config.n_val, length)

    def check(self, model: ChatModel) -> None:
        """Some layer must be eligible, and every validation prompt fit into the context."""
        self.asked.config.rule.check(model.sites.n_layers)
        val = self.asked.prompts.val
        check_prompts(model, [*val.harmful, *val.harmless])

    def work(self, run: Run) -> Iterable[Metric]:
        """Leave the choice in ``direction.safetensors`` and three files about it."""
        config, val, candidates = run.config, self.asked.prompts.val, run.candidates
        assert candidates is not None
        names = ("scores.json", "direction.safetensors", "selection.json", "stability.json")
        scores, direction, summary, stability = (run.folder.path / name for name in names)
        inputs = {
            "candidates": file_sha256(run.folder.path / "candidates.safetensors"),
            "tokens": candidates.tokens.ids,
            "val": prompts_hash([*val.harmful, *val.harmless]),
            "n": config.n_val,
            "filter": config.filter,
            "rule": asdict(config.rule),
            "layer_step": config.layer_step,
            "full_map": config.full_map,
            "resamples": config.resamples,
            "seed": config.seed,
        }

        def work() -> None:
            try:
                selection = select(
                    run.model,
                    candidates,
                    val,
                    n=config.n_val,
                    filtered=config.filter,
                    rule=config.rule,
                    layer_step=config.layer_step,
                    full_map=config.full_map,
                    resamples=config.resamples,
                    strict=config.strict,
                )
                if selection.direction.norm == 0:  # the rule may choose it; nothing can be measured
                    raise NoCandidateError(
                        f"The best candidate ({selection.score.position}, {selection.score.layer}) "
                        "is the zero vector: no candidate does more to the refusal metric than "
                        "nothing. Look at the refusal tokens (--refusal-tokens).",
                        selection.scores,
                    )
            except NoCandidateError as error:
                write_json(scores, finite(to_json(error.scores)))  # to see what was missed
                raise
            write_json(scores, finite(to_json(selection.scores)))
            selection.direction.save(direction)
            write_json(stability, plain(selection.stability))
            kept = ("score", "qualified", "rejected", "harmful_count", "harmless_count")
            write_json(summary, finite({name: plain(getattr(selection, name)) for name in kept}))

        outputs = [scores, direction, summary, stability]
        self.do(run, "", inputs, outputs, work, self.costs(run.plan))
        selection = read_selection(run.folder.path)
        found = selection.direction
        check_width(found.vector, run.model.sites.d_model)
        check_place(found.position, found.layer, candidates.n_positions, candidates.n_layers)
        # The weights are those of this model, whatever it was called.
        selection = replace(selection, direction=replace(found, model=run.model.name))
        if config.strict and not selection.qualified:
            why = explain(selection.scores, config.rule)
            raise NoCandidateError(
                f"{why} Run without --strict to go on with the closest one, marked unqualified."
            )
        run.selection = selection
        return ()


def drawn(plan: Plan) -> float:
    """Prompts that are read for each that counts."""
    return DRAWN if plan.config.filter else 1.0


def plain(value: Any) -> Any:
    """A record as JSON, anything else as it is."""
    return to_json(value) if hasattr(value, "__dataclass_fields__") else value
