"""The stages that find the direction: refusal tokens, activations, selection."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from refusal.config.run_config import RunConfig
from refusal.core.errors import NoCandidateError
from refusal.core.records import Metric, RefusalTokens, finite, to_json
from refusal.core.storage import file_sha256, write_json, write_tensors
from refusal.core.valid import check_place, check_width
from refusal.core.work import Work, Write
from refusal.directions import METHODS
from refusal.directions.method import DirectionMethod
from refusal.directions.refusal_tokens import (
    CHOOSE_NEW_TOKENS,
    CHOOSE_PROMPTS,
    preset_tokens,
    tokens_for,
)
from refusal.directions.selection.rule import explain
from refusal.model.chat_model import ChatModel
from refusal.runs.files import read_tokens
from refusal.runs.folder import prompts_hash
from refusal.runs.inputs import check_prompts
from refusal.runs.records import read_candidates, read_selection
from refusal.runs.stage import Asked, Plan, Run, Stage


class Tokens(Stage):
    """The tokens whose probability says that a refusal begins.

    A method that needs none takes those that are given or known of the model's family, if any.
    """

    name = "tokens"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Completions of a few training prompts, unless the tokens are given."""
        if plan.config.refusal_tokens or not METHODS[plan.config.method].needs_tokens:
            return ()
        rows = CHOOSE_PROMPTS + CHOOSE_PROMPTS // 2  # harmful and harmless ones
        return (Write(rows, CHOOSE_NEW_TOKENS, plan.lengths.train),)

    def work(self, run: Run) -> Iterable[Metric]:
        """Leave them in ``refusal_tokens.json``."""
        path, train = run.folder.path / "refusal_tokens.json", self.asked.prompts.train
        inputs = {
            "train": prompts_hash([*train.harmful, *train.harmless]),
            "given": run.config.refusal_tokens,
            "seed": run.config.seed,
        }

        wanted = run.config.refusal_tokens
        needed = METHODS[run.config.method].needs_tokens or bool(wanted)
        if not needed:
            inputs["needed"] = False

        def work() -> None:
            found: RefusalTokens | None = (
                tokens_for(run.model, train, wanted) if needed else preset_tokens(run.model)
            )
            write_json(path, plain(found))

        self.do(run, "", inputs, [path], work, self.costs(run.plan))
        run.tokens = read_tokens(run.folder.path)
        return ()


class Extract(Stage):
    """Mean activations of both classes at every position and layer, and their differences."""

    name = "extract"

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        method_of(asked.config)  # before anything slow

    def check(self, model: ChatModel) -> None:
        """Every training prompt must fit into the model's context."""
        train = self.asked.prompts.train
        check_prompts(model, [*train.harmful, *train.harmless])

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """What the method says."""
        return method_of(plan.config).extract_costs(plan.config, plan.lengths)

    def work(self, run: Run) -> Iterable[Metric]:
        """Leave the candidates in ``candidates.safetensors``."""
        config, train = run.config, self.asked.prompts.train
        path = run.folder.path / "candidates.safetensors"
        method, tokens = method_of(config), run.tokens
        inputs = {
            "train": prompts_hash([*train.harmful, *train.harmless]),
            "tokens": run.token_ids,
            "n": config.n_train,
            "filter": method.filters(config),
            "layers": method.layers_read(config, run.model.sites.n_layers),
            "seed": config.seed,
            **named(config),
        }

        def work() -> None:
            found = method.extract(run.model, train, tokens, config)
            counts = {label: asdict(count) for label, count in found.counts.items()}
            metadata = {
                "counts": json.dumps(finite(counts)),
                "model": run.model.name,
                "suffix": json.dumps(run.model.chat.suffix_tokens),
                "seen": json.dumps(sorted(found.seen)),
            }
            tensors = {"candidates": found.vectors}
            if found.harmless_means is not None:
                tensors["harmless_means"] = found.harmless_means
            write_tensors(path, tensors, metadata)

        self.do(run, "", inputs, [path], work, self.costs(run.plan))
        folder = run.folder.path
        run.candidates = read_candidates(folder, tokens, run.model.name, config.seed)
        return ()


class Select(Stage):
    """The candidate that the rule chooses on validation prompts."""

    name = "select"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """What the method says."""
        return method_of(plan.config).select_costs(plan.config, plan.layers, plan.lengths)

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
        method = method_of(config)
        inputs: dict[str, Any] = {
            "candidates": file_sha256(run.folder.path / "candidates.safetensors"),
            "tokens": run.token_ids,
            "val": prompts_hash([*val.harmful, *val.harmless]),
            "n": config.n_val,
            "filter": method.filters(config),
            "rule": asdict(config.rule),
            "layer_step": config.layer_step,
            "full_map": config.full_map,
            "resamples": config.resamples,
            "seed": config.seed,
            **named(config),
        }
        if config.selection_risk:
            inputs["risk"] = config.selection_risk

        def work() -> None:
            try:
                selection = method.select(run.model, candidates, val, config)
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
            found = selection.direction
            replace(found, by_layer=candidates.by_layer(found.position)).save(direction)
            write_json(stability, plain(selection.stability))
            kept = ("score", "qualified", "rejected", "harmful_count", "harmless_count", "risk")
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


def method_of(config: RunConfig) -> DirectionMethod:
    """The method that a configuration names.

    Raises:
        ConfigError: there is no such method.
    """
    method: DirectionMethod = METHODS[config.method]()
    return method


def named(config: RunConfig) -> dict[str, str]:
    """What the method adds to the inputs of a step; ``dim`` was there before methods had names."""
    return {} if config.method == "dim" else {"method": config.method}


def plain(value: Any) -> Any:
    """A record as JSON, anything else as it is."""
    return to_json(value) if hasattr(value, "__dataclass_fields__") else value
