"""Several finders side by side: the place that each chooses, how well its direction reads, and what
it writes.

finders/<method>.json                    what the method chose, with its scores
finders/<method>.direction.safetensors   its direction
finders/<name>.jsonl                     completions of harmful test prompts under its ablation; the
                                         unmodified model's, and under a random direction's
finders.json                             all numbers, as metrics

Read: how far the direction tells harmful from harmless test prompts apart, unmodified, at its
place. Write: how much refusal is left under its ablation. Prompts and completions are of the test
split, which no method has seen.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from refusal.config.run_config import RunConfig
from refusal.core.direction import Direction
from refusal.core.errors import NoCandidateError
from refusal.core.records import CandidateScore, Completion, Metric, Prompt, finite, to_json
from refusal.core.stats import auroc_estimate
from refusal.core.storage import file_sha256, write_json, write_jsonl
from refusal.core.strict_files import Saved, damaged, read_one
from refusal.core.work import Read, Work, Write
from refusal.directions import METHODS
from refusal.directions.controls import cosines, random_directions
from refusal.directions.from_activations import (
    BEFORE,
    FromActivations,
    PromptActivations,
    read_activations,
)
from refusal.directions.method import DirectionMethod
from refusal.directions.pool import Draw, run_pool
from refusal.evaluations.refusal.completions import Wanted, check_untouched, generate_together
from refusal.evaluations.refusal.generate import refresh_verdicts
from refusal.evaluations.refusal.rates import measure_all, metric
from refusal.interventions.conditions import BASELINE
from refusal.runs.files import SavedScore, read_completions, read_metrics
from refusal.runs.finding import Extract, Select, chooser_of
from refusal.runs.folder import Step, prompts_hash
from refusal.runs.stage import Asked, Finding, Plan, Run, Stage

SET = "finders"  # what metrics and files of this stage are called
RANDOM = "random"
MEASURES = ("refusal_rate", "refusal_rate_change", "degenerate_rate")

log = logging.getLogger(__name__)


class _Choice(Saved):
    score: SavedScore | None
    qualified: bool
    direction: str | None


class Finders(Stage):
    """The run's method and the further ones in one table; nothing where there are no further
    ones.
    """

    name = "finders"

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self.further = further(asked.config)
        for method in self.further.values():
            method.settings(asked.config)  # before anything slow
        self.activations: PromptActivations | None = None

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Every further method's extraction (one for all that look at single prompts) and
        selection; the test prompts once; their completions.
        """
        config, found = plan.config, list[Work]()
        methods = further(config)
        if not methods:
            return ()
        for name in methods:
            found += cls._one(plan, name)
        read = Read(2 * config.n_test, plan.lengths.test)
        return (*found, read, *[cls._write(plan)] * (len(methods) + 3))

    @staticmethod
    def _write(plan: Plan) -> Work:
        return Write(plan.config.n_test, plan.config.new_tokens, plan.lengths.test)

    @staticmethod
    def _one(plan: Plan, name: str) -> Sequence[Work]:
        """What a further method takes; only the first of those that share a pass takes that."""
        methods = further(plan.config)
        sharing = [each for each in methods if isinstance(methods[each], FromActivations)]
        method, config = methods[name], plan.config
        choose = method.select_costs(config, plan.layers, plan.lengths)
        if name in sharing[1:]:
            return choose
        return (*method.extract_costs(config, plan.lengths), *choose)

    def work(self, run: Run) -> Iterable[Metric]:
        """Leave them in ``finders.json`` and the folder ``finders``."""
        if not self.further:
            return ()
        first = run.config.found_by
        scores: dict[str, CandidateScore] = {first: run.chosen.score}
        directions = {first: run.direction}
        qualified = {first: run.chosen.qualified}
        for name, method in self.further.items():
            choice, direction = self._choose(run, name, method)
            if choice.score is not None and direction is not None:
                scores[name], directions[name] = choice.score, direction
                qualified[name] = choice.qualified
        self.activations = None  # as large as a small model
        random = random_directions(run.direction, 1, run.config.seed)["random-1"]
        tested = {**directions, RANDOM: random}
        written = self._complete(run, tested)
        path = run.folder.path / "finders.json"
        test = [*self.asked.measured["harmful"], *self.asked.measured["harmless"]]
        inputs = {
            "direction": run.direction_hash,
            "directions": [_digest(run, name) for name in self.further],
            "completions": [file_sha256(file) for file in written.values()],
            "test": prompts_hash(test),
        }

        def work() -> None:
            found = [*chosen_metrics(scores, qualified), *_cosines(directions)]
            found += self._reads(run, tested)
            found += _writes({name: read_completions(file) for name, file in written.items()})
            write_json(path, finite(to_json(tuple(found))))

        cost = [Read(2 * run.config.n_test, run.plan.lengths.test)]
        self.do(run, "table", inputs, [path], work, cost)
        return read_metrics(path)

    def _choose(
        self, run: Run, name: str, method: DirectionMethod
    ) -> tuple[_Choice, Direction | None]:
        """What a further method chooses on the run's training and validation prompts."""
        base = run.folder.path / SET
        summary, file = base / f"{name}.json", base / f"{name}.direction.safetensors"
        options = {"method": (name,), "resamples": 0, "full_map": False, "strict": False}
        how = replace(run.finding, config=run.finding.config.model_copy(update=options))
        config, train = how.config, how.train
        inputs = {"extract": Extract.inputs(run, how), "select": Select.inputs(run, how)}

        def work() -> None:
            try:
                if isinstance(method, FromActivations):
                    candidates = method.candidates_of(self._read(run, how), config)
                else:
                    candidates = method.extract(run.model, train, run.tokens, config)
                candidates = replace(candidates, seen=candidates.seen | how.seen)
                selection = chooser_of(how).select(run.model, candidates, how.val, config)
                pairs = (train, how.val)
                selection = method.refine(run.model, candidates, selection, pairs, config)
                if selection.direction.norm == 0:
                    raise NoCandidateError("its best candidate is the zero vector")
            except NoCandidateError as error:
                log.warning("--method %s: %s", name, error)
                write_json(summary, {"score": None, "qualified": False, "direction": None})
                return
            selection.direction.save(file)
            score = finite(to_json(selection.score))
            about = {"qualified": selection.qualified, "direction": file_sha256(file)}
            write_json(summary, {"score": score, **about})

        self.do(run, name, inputs, [summary], work, self._one(run.plan, name))
        choice: _Choice = read_one(summary, _Choice)
        if choice.score is None:
            return choice, None
        direction = Direction.load(file)
        if file_sha256(file) != choice.direction:
            raise damaged(file, f"it is not the direction that {summary.name} is of")
        return choice, direction

    def _read(self, run: Run, how: Finding) -> PromptActivations:
        """The training prompts' activations, read when the first method asks for them."""
        if self.activations is None:
            layers = how.config.rule.eligible_layers(run.model.sites.n_layers)
            about = (how.train, run.tokens, how.config, layers)
            self.activations = read_activations(run.model, *about)
        return self.activations

    def _complete(self, run: Run, directions: Mapping[str, Direction]) -> dict[str, Path]:
        """Completions of the harmful test prompts, unmodified and under each ablation, side by
        side.
        """
        prompts, base = self.asked.measured["harmful"], run.folder.path / SET
        new, options = run.config.max_new_tokens, {"thinking_tokens": run.config.thinking_tokens}
        drawn = (prompts, run.config.sampling)
        wanted = {BASELINE: Wanted(f"{SET} {BASELINE}", BASELINE, run.direction, *drawn)}
        for name, direction in directions.items():
            wanted[name] = Wanted(f"{SET} {name}", "ablation", direction, *drawn)
        paths = {name: base / f"{name}.jsonl" for name in wanted}
        steps = {}
        for name, path in paths.items():
            inputs = {
                "prompts": prompts_hash(prompts),
                "max_new_tokens": new,
                "of": None if name == BASELINE else _digest(run, name),
                **run.config.sampling.inputs,
                **(options if run.config.thinking == "on" else {}),
            }
            cost = [self._write(run.plan)]
            steps[name] = self.step(f"completions {name}", inputs, [path], cost)

        def work(missing: Sequence[Step], finished: Callable[[Step], None]) -> None:
            todo = [name for name, step in steps.items() if step in missing]
            name_of = {wanted[name].set_name: name for name in todo}

            def keep(one: Wanted, completions: tuple[Completion, ...]) -> None:
                name = name_of[one.set_name]
                write_jsonl(paths[name], to_json(completions))
                finished(steps[name])

            generate_together(run.model, [wanted[name] for name in todo], new, keep)

        run.folder.do_together(list(steps.values()), work)
        for name, path in paths.items():
            refresh_verdicts(run.folder, steps[name].name, [path])
        return paths

    def _reads(self, run: Run, directions: Mapping[str, Direction]) -> Iterator[Metric]:
        """AUROC of every direction at its place on the unmodified test prompts."""
        pools = [self.asked.measured[label] for label in ("harmful", "harmless")]
        for direction in directions.values():
            for pool in pools:
                check_untouched(pool, direction)
        bad, good = (projections(run, pool, directions) for pool in pools)
        for name in directions:
            found = auroc_estimate(bad[name], good[name])
            n = len(bad[name]) + len(good[name])
            yield metric("finder_auroc", SET, name, found, n)


def further(config: RunConfig) -> dict[str, DirectionMethod]:
    """The methods after the first, which the run is about.

    Raises:
        ConfigError: there is no such method, or a package is missing.
    """
    return {name: METHODS[name]() for name in config.method[1:]}


def projections(
    run: Run, pool: Sequence[Prompt], directions: Mapping[str, Direction]
) -> dict[str, list[float]]:
    """Of every prompt the component along each direction where that was read, in one pass."""
    layers = 1 + max(direction.layer for direction in directions.values())
    draw = Draw(filtered=False, before=BEFORE)
    found: dict[str, list[float]] = {name: [] for name in directions}
    for _, _, read in run_pool(run.model, pool, None, draw, "read test prompts", layers, True):
        if read is not None:
            for name, d in directions.items():
                found[name].append(float(read[d.position, d.layer].double() @ d.vector.double()))
    return found


def chosen_metrics(
    scores: Mapping[str, CandidateScore], qualified: Mapping[str, bool]
) -> Iterator[Metric]:
    """Place and scores of what each method chose."""
    for name, score in scores.items():
        values = {"position": score.position, "layer": score.layer, **score.by_name}
        values["qualified"] = float(qualified[name])
        for key, value in values.items():
            if value is not None and key not in METHODS:
                yield _exact(f"finder_{key}", name, float(value))


def _cosines(directions: Mapping[str, Direction]) -> Iterator[Metric]:
    """Of every two chosen directions."""
    for name, direction in directions.items():
        for other, value in cosines(direction, dict(directions)).items():
            yield _exact("finder_cosine", f"{name}/{other}", value)


def _writes(completions: Mapping[str, Sequence[Completion]]) -> Iterator[Metric]:
    """Refusal of harmful test prompts under each ablation, and its change from the baseline."""
    for m in measure_all({(SET, name): rows for name, rows in completions.items()}):
        if m.name in MEASURES and m.condition in completions:
            yield replace(m, name=f"finder_{m.name}")


def _digest(run: Run, name: str) -> str | None:
    """Sha256 of a method's direction; a random one has the run's, which it is made of."""
    if name in (run.config.found_by, RANDOM):
        return run.direction_hash
    file = run.folder.path / SET / f"{name}.direction.safetensors"
    return file_sha256(file) if file.is_file() else None


def _exact(name: str, condition: str, value: float) -> Metric:
    """A number that is not estimated from a sample."""
    return Metric(name, SET, condition, value, value, value, 1)
