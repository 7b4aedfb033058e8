"""The stages that find the direction: refusal tokens, activations, selection."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from refusal.config.run_config import RunConfig
from refusal.core.errors import NoCandidateError
from refusal.core.filters import FilterChoice
from refusal.core.progress import NOTE
from refusal.core.records import ClassCount, Metric, PromptPair, finite, to_json
from refusal.core.storage import file_sha256, remove, write_json, write_jsonl, write_tensors
from refusal.core.valid import check_place, check_width
from refusal.core.work import Work, Write
from refusal.directions import METHODS
from refusal.directions.filter_choice import Found, choose_filter
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
from refusal.runs.filtered import filter_file, judged_file, read_filter
from refusal.runs.folder import prompts_hash
from refusal.runs.inputs import check_prompts
from refusal.runs.records import read_candidates, read_selection
from refusal.runs.sorting import check_expected
from refusal.runs.stage import Asked, Finding, Plan, Run, Stage

log = logging.getLogger(__name__)

INSTRUCTION_END = "instruction end"


class Tokens(Stage):
    """The tokens whose probability says that a refusal begins.

    A method that needs none takes those that are given or known of the model's family, if any.
    """

    name = "tokens"
    version = 3  # 2 kept the tokens of short completions where whole ones were judged

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Completions of a few training prompts, unless the tokens are given."""
        config, rows = plan.config, CHOOSE_PROMPTS + CHOOSE_PROMPTS // 2  # of both classes
        if config.filter == "completions":
            return (Write(rows, config.judged_tokens, plan.lengths.train),)
        if config.refusal_tokens or not needs_tokens(config):
            return ()
        return (Write(rows, CHOOSE_NEW_TOKENS, plan.lengths.train),)

    def work(self, run: Run) -> Iterable[Metric]:
        """Leave them in ``refusal_tokens.json``, and the filter that the same sample speaks for."""
        folder, train, config = run.folder.path, self.asked.prompts.train, run.config
        inputs: dict[str, Any] = {
            "train": prompts_hash([*train.harmful, *train.harmless]),
            "given": config.refusal_tokens,
            "filter": config.filter,
            "seed": config.seed,
        }
        if config.filter in ("auto", "completions"):
            inputs["judged_tokens"] = config.judged_tokens
        if not self._needed(config):
            inputs["needed"] = False
        files = (folder / "refusal_tokens.json", filter_file(folder))
        sample = judged_file(folder, "sample")

        def work() -> None:
            remove(sample)  # it is there where completions decide, and then of the same inputs
            found = self._found(run.model, train, config)
            if found.rows:
                write_jsonl(sample, to_json(found.rows))
            write_json(files[0], plain(found.tokens))
            write_json(files[1], finite(to_json(found.choice)))

        self.do(run, "", inputs, files, work, self.costs(run.plan))
        run.tokens, run.filter = read_tokens(folder), read_filter(folder)
        unusual = run.filter.automatic and run.filter.kind != "metric"
        log.log(NOTE if unusual else logging.INFO, "%s", run.filter.why)
        check_expected(run, run.filter)
        return ()

    def _needed(self, config: RunConfig) -> bool:
        return needs_tokens(config) or bool(config.refusal_tokens)

    def _found(self, model: ChatModel, train: PromptPair, config: RunConfig) -> Found:
        """The tokens and the filter; a method that needs no tokens has none unless by
        completions.
        """
        if needs_tokens(config) or config.filter == "completions":
            return choose_filter(model, train, config)
        given = config.refusal_tokens
        tokens = tokens_for(model, train, given) if given else preset_tokens(model)
        why = f"The method {config.found_by} needs no refusal tokens: all prompts count."
        return Found(tokens, FilterChoice("none", False, why))


class Extract(Stage):
    """Mean activations of both classes at every position and layer, and their differences."""

    name = "extract"

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        method_of(asked.config).settings(asked.config)  # before anything slow

    def check(self, model: ChatModel) -> None:
        """Every training prompt must fit into the model's context."""
        train = self.asked.prompts.train
        check_prompts(model, [*train.harmful, *train.harmless])

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """What the method says."""
        return method_of(plan.config).extract_costs(plan.config, plan.lengths)

    @staticmethod
    def inputs(run: Run, how: Finding) -> dict[str, Any]:
        """All that candidates found in a way depend on."""
        config, method = how.config, method_of(how.config)
        return {
            "train": prompts_hash([*how.train.harmful, *how.train.harmless]),
            "tokens": run.token_ids,
            "n": config.n_train,
            "filter": method.filters(config),
            "layers": method.layers_read(config, run.model.sites.n_layers),
            "seed": config.seed,
            **named(config),
        }

    def work(self, run: Run) -> Iterable[Metric]:
        """Leave the candidates in ``candidates.safetensors``."""
        config, train = run.finding.config, run.finding.train
        path = run.folder.path / "candidates.safetensors"
        method, tokens = method_of(config), run.tokens

        def work() -> None:
            found = method.extract(run.model, train, tokens, config)
            counts = {}
            for label, count in found.counts.items():
                counts[label] = asdict(_drawn(run, f"train.{label}", count))
            metadata = {
                "counts": json.dumps(finite(counts)),
                "model": run.model.name,
                "suffix": json.dumps(position_texts(run.model, found.n_positions)),
                "seen": json.dumps(sorted(found.seen | run.finding.seen)),
            }
            tensors = {"candidates": found.vectors}
            if found.harmless_means is not None:
                tensors["harmless_means"] = found.harmless_means
            if found.several is not None:
                tensors["several"] = found.several
            write_tensors(path, tensors, metadata)

        inputs = self.inputs(run, run.finding)
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

    @staticmethod
    def inputs(run: Run, how: Finding) -> dict[str, Any]:
        """All that a choice made in a way depends on, beside the candidates."""
        config = how.config
        found = {
            "tokens": run.token_ids,
            "val": prompts_hash([*how.val.harmful, *how.val.harmless]),
            "n": config.n_val,
            "filter": chooser_of(how).filters(config),
            "rule": asdict(config.rule),
            "layer_step": config.layer_step,
            "full_map": config.full_map,
            "resamples": config.resamples,
            "seed": config.seed,
            **named(config),
        }
        if config.selection_risk:
            found["risk"] = config.selection_risk
        if how.rule != "metric":
            found["chosen by"] = how.rule
        return found

    def work(self, run: Run) -> Iterable[Metric]:
        """Leave the choice in ``direction.safetensors`` and three files about it."""
        config, val, candidates = run.finding.config, run.finding.val, run.candidates
        assert candidates is not None
        names = ("scores.json", "direction.safetensors", "selection.json", "stability.json")
        scores, direction, summary, stability = (run.folder.path / name for name in names)
        method = chooser_of(run.finding)
        made = file_sha256(run.folder.path / "candidates.safetensors")
        inputs = {"candidates": made, **self.inputs(run, run.finding)}

        def work() -> None:
            try:
                selection = method.select(run.model, candidates, val, config)
                pairs = (run.finding.train, val)
                about = (candidates, selection, pairs, config)
                selection = method_of(config).refine(run.model, *about)
                if selection.direction.norm == 0:  # the rule may choose it; nothing can be measured
                    raise NoCandidateError(
                        f"The best candidate ({selection.score.position}, {selection.score.layer}) "
                        "is the zero vector: no candidate does more to the refusal metric than "
                        "nothing. Look at the refusal tokens (--refusal-tokens).",
                        selection.scores,
                    )
                selection = replace(
                    selection,
                    harmful_count=_drawn(run, "val.harmful", selection.harmful_count),
                    harmless_count=_drawn(run, "val.harmless", selection.harmless_count),
                )
            except NoCandidateError as error:
                write_json(scores, finite(to_json(error.scores)))  # to see what was missed
                raise
            write_json(scores, finite(to_json(selection.scores)))
            found = selection.direction
            if found.by_layer is None:
                found = replace(found, by_layer=candidates.by_layer(found.position))
            found.save(direction)
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


def needs_tokens(config: RunConfig) -> bool:
    """Whether one of the methods does."""
    return any(METHODS[name].needs_tokens for name in config.method)


def method_of(config: RunConfig) -> DirectionMethod:
    """The method that a configuration names.

    Raises:
        ConfigError: there is no such method.
    """
    method: DirectionMethod = METHODS[config.found_by]()
    return method


def chooser_of(finding: Finding) -> DirectionMethod:
    """The method whose rule chooses: COSMIC's where the refusal metric cannot be trusted with the
    paper's.
    """
    method = method_of(finding.config)
    papers = type(method).select is DirectionMethod.select
    if finding.rule == "cosmic" and papers:
        method = METHODS["cosmic"]()
    return method


def _drawn(run: Run, pool: str, count: ClassCount) -> ClassCount:
    """How many prompts were drawn, where completions have sorted them out before."""
    return replace(count, drawn=run.finding.drawn.get(pool, count.drawn))


def named(config: RunConfig) -> dict[str, Any]:
    """What the method adds to the inputs of a step; ``dim`` was there before methods had names."""
    if config.found_by == "dim":
        return {}
    return {"method": config.found_by, **method_of(config).settings(config)}


def position_texts(model: ChatModel, n: int) -> tuple[str, ...]:
    """What the tokens at ``n`` positions are called: the template's by their texts, one before them
    by what it is.
    """
    texts = tuple(model.chat.suffix_tokens)
    return (INSTRUCTION_END,) * (n - len(texts)) + texts


def plain(value: Any) -> Any:
    """A record as JSON, anything else as it is."""
    return to_json(value) if hasattr(value, "__dataclass_fields__") else value
