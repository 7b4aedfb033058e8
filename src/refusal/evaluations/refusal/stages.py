"""The stages of a run after the direction is chosen: controls, completions, drift, and the numbers
made of them.

Everything measured is kept item by item, and ``metrics.json`` is computed from those files alone:

    completions/<set>.<condition>.jsonl   what the model wrote, with the verdict
    drift/<set>.<condition>.jsonl         nats and KL of every token
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from refusal.config.run_config import RunConfig
from refusal.core import parallel
from refusal.core.direction import Direction
from refusal.core.errors import DirectionError
from refusal.core.records import (
    Completion,
    Label,
    Metric,
    Prompt,
    PromptSplits,
    RefusalTokens,
    finite,
    to_json,
)
from refusal.core.storage import file_sha256, write_json, write_jsonl, write_tensors
from refusal.core.strict_files import damaged, read_lines
from refusal.core.thinking import split
from refusal.core.valid import direction_fault
from refusal.directions.controls import control_directions, cosines
from refusal.engines.hooks import OWN
from refusal.engines.protocol import Engine
from refusal.evaluations.drift import Drift, ForcedText, drift_metrics, measure_drift, own_answers
from refusal.evaluations.judges.reading import check_completions
from refusal.evaluations.refusal.completions import complete_controls, complete_under, judged_again
from refusal.evaluations.refusal.rates import CORRECTED, measure_all
from refusal.evaluations.sets import OWN_ANSWERS, WITH_CONTROLS, Sets
from refusal.interventions.conditions import (
    ACTIONS,
    BASELINE,
    CONDITIONS,
    STOPPING,
    interventions_for,
)
from refusal.model.chat_model import ChatModel
from refusal.prompts.load import matched_pairs
from refusal.runs.files import read_completions, read_metrics
from refusal.runs.folder import RunFolder, prompts_hash
from refusal.runs.identity import program
from refusal.runs.records import read_controls

log = logging.getLogger(__name__)

ORDER = (BASELINE, "ablation", "subtraction", "addition")


@dataclass(frozen=True)
class Measured:
    """The measurements of one direction in a run folder."""

    folder: RunFolder
    config: RunConfig
    model: ChatModel
    prompts: PromptSplits
    tokens: RefusalTokens
    direction: Direction
    sets: Sets
    engine: Engine = OWN

    @cached_property
    def test(self) -> dict[Label, tuple[Prompt, ...]]:
        """The test prompts of a class."""
        n = self.config.n_test
        return {
            "harmful": self.prompts.test.harmful[:n],
            "harmless": self.prompts.test.harmless[:n],
        }

    @cached_property
    def _direction_hash(self) -> str:
        return file_sha256(self.folder.path / "direction.safetensors")

    def complete(self) -> None:
        """Completions of every set under every condition, the controls included."""
        pools = {
            str(set_name): prompts
            for set_name, prompts in (*self.test.items(), *self.sets.over_refusal.items())
        }
        try:  # one condition after the other: an engine may have to start anew for each
            for set_name, condition in sorted(
                self._uncontrolled(), key=lambda key: ORDER.index(key[1])
            ):
                self._complete(set_name, condition, pools[set_name])
        finally:
            self.engine.close()
        for set_name, some, actions in self._controlled():
            for action in actions if self.controls else ():
                self._complete_controls(set_name, action, some)

    def uncontrolled(self) -> dict[tuple[str, str], tuple[Completion, ...]]:
        """The completions without those of the controls: what further judges are asked about."""
        return {
            key: read_completions(self.folder.completions(*key)) for key in self._uncontrolled()
        }

    def metrics(self, extra: Sequence[Metric] = ()) -> tuple[Metric, ...]:
        """All that is measured; written to ``metrics.json``."""
        drifts = dict(self._drifts())
        path = self.folder.path / "metrics.json"
        files = {
            **{".".join(key): self.folder.completions(*key) for key in self._completed()},
            **{
                f"drift {set_name}.{c}": self._drift_file(set_name, c)
                for set_name in drifts
                for c in drifts[set_name]
            },
        }
        inputs = {
            **{name: file_sha256(file) for name, file in files.items()},
            "direction": self._direction_hash,
            "extra": to_json(tuple(extra)),
            "k": self.config.drift_tokens,
            "accuracy": {name: asdict(accuracy) for name, accuracy in CORRECTED.items()},
        }

        def work() -> None:
            completions = {
                key: read_completions(self.folder.completions(*key)) for key in self._completed()
            }
            metrics = [*measure_all(completions), *self._cosines(), *extra]
            for set_name, drift in drifts.items():
                metrics += drift_metrics(
                    drift, set_name, self.config.drift_tokens if set_name == OWN_ANSWERS else None
                )
            write_json(
                path, finite(to_json(tuple(dict.fromkeys(metrics))))
            )  # a judge may repeat a rate

        self.folder.stage("evaluate", inputs, [path], work)
        for set_name in ("harmful", "harmless", *self.sets.over_refusal):
            warn_of_no_answers(
                read_completions(self.folder.completions(set_name, BASELINE)), set_name
            )
        return read_metrics(path)

    @cached_property
    def controls(self) -> dict[str, Direction]:
        """The control directions, made once and kept in ``controls.safetensors``."""
        if self.config.controls == 0:
            return {}
        path = self.folder.path / "controls.safetensors"
        inputs = {
            "direction": self._direction_hash,
            "n": self.config.controls,
            "train": prompts_hash([*self.prompts.train.harmful, *self.prompts.train.harmless]),
            "n_train": self.config.n_train,
            "seed": self.config.seed,
        }
        pairs = matched_pairs(
            apart_from=[prompt for _, prompts, _ in self._controlled() for prompt in prompts]
        )
        if len(pairs.harmful) < len(matched_pairs().harmful):  # own prompts may be among them
            inputs["matched"] = prompts_hash([*pairs.harmful, *pairs.harmless])

        def work() -> None:
            made = control_directions(
                self.model,
                self.direction,
                self.prompts.train,
                self.tokens,
                n_random=self.config.controls,
                n_train=self.config.n_train,
                matched=pairs,
                seed=self.config.seed,
            )
            about = {
                name: json.dumps({"norm": d.norm, "seen": sorted(d.seen)})
                for name, d in made.items()
            }
            write_tensors(path, {name: control.vector for name, control in made.items()}, about)

        self.folder.stage("controls", inputs, [path], work)
        found = read_controls(path, self.direction)
        for name, d in found.items():
            if fault := direction_fault(d.vector.numpy(), d.norm, d.position, d.layer, d.qualified):
                raise DirectionError(
                    f"{path}: {name} is no direction, {fault}. Delete it; the same command makes "
                    "it."
                )
        return found

    def _cosines(self) -> list[Metric]:
        found = cosines(self.direction, self.controls)
        return [
            Metric("cosine", "direction", name, value, value, value, 1)
            for name, value in found.items()
        ]

    def _controlled(self) -> list[tuple[str, Sequence[Prompt], tuple[str, ...]]]:
        """(set, its prompts, actions): what every control goes through."""
        classes = [(str(label), self.test[label], actions) for label, actions in ACTIONS.items()]
        return [
            *classes,
            *(
                (set_name, prompts, STOPPING)
                for set_name, prompts in self.sets.over_refusal.items()
            ),
        ]

    def _completed(self) -> list[tuple[str, str]]:
        """The (set, condition) pairs that this configuration has completions of."""
        controls = [
            (set_name, f"{name}-{action}")
            for set_name, _, actions in self._controlled()
            for action in actions
            for name in self.controls
        ]
        return [*self._uncontrolled(), *controls]

    def _uncontrolled(self) -> list[tuple[str, str]]:
        """The (set, condition) pairs of the direction itself."""
        over = [
            (set_name, condition)
            for set_name in self.sets.over_refusal
            for condition in (BASELINE, *STOPPING)
        ]
        return [*CONDITIONS, *over]

    def _complete(self, set_name: str, condition: str, prompts: Sequence[Prompt]) -> None:
        path = self.folder.completions(set_name, condition)
        inputs = {
            "prompts": prompts_hash(prompts),
            "max_new_tokens": self.config.max_new_tokens,
            "direction": None if condition == BASELINE else self._direction_hash,
        }
        served = self.config.engine != "own" and self.engine.serves(condition)
        if served:
            given = self.config
            inputs["engine"] = [
                given.engine,
                given.engine_model,
                given.engine_ablated,
                given.engine_arguments,
            ]

        def write() -> None:
            tokens = self.config.max_new_tokens
            done = complete_under(
                self.model, self.direction, prompts, condition, tokens, set_name, self.engine
            )
            write_jsonl(path, to_json(done))

        def work() -> None:
            parallel.only_writer(write) if served and self.engine.elsewhere else write()

        name = f"generate {set_name}.{condition}"
        self.folder.stage(name, inputs, [path], work)
        refresh_verdicts(self.folder, name, [path])

    def _complete_controls(self, set_name: str, action: str, prompts: Sequence[Prompt]) -> None:
        controls, prompts = self.controls, prompts[: self.config.n_control]
        paths = {name: self.folder.completions(set_name, f"{name}-{action}") for name in controls}
        inputs = {
            "prompts": prompts_hash(prompts),
            "max_new_tokens": self.config.max_new_tokens,
            "controls": file_sha256(self.folder.path / "controls.safetensors"),
        }

        def work() -> None:
            done = complete_controls(
                self.model, controls, prompts, action, self.config.max_new_tokens, set_name
            )
            for condition, completions in done.items():
                write_jsonl(self.folder.completions(set_name, condition), to_json(completions))

        name = f"generate {set_name}.controls-{action}"
        self.folder.stage(name, inputs, list(paths.values()), work)
        refresh_verdicts(self.folder, name, list(paths.values()))

    def _drifts(self) -> Iterator[tuple[str, dict[str, tuple[Drift, ...]]]]:
        """Drift by set and condition, measured where it is not there yet."""
        if self.config.drift_tokens == 0:
            return
        baseline = read_completions(self.folder.completions("harmless", BASELINE))[
            : self.config.n_texts
        ]
        answers = own_answers(self.model, baseline, self.config.text_tokens)
        kinds = {OWN_ANSWERS: answers}
        kinds |= {
            corpus.name: corpus.forced(self.model, self.config.text_tokens)
            for corpus in self.sets.corpora
        }
        for set_name, texts in kinds.items():
            if texts:
                yield set_name, self._drift(set_name, texts)
            else:
                log.warning(
                    "No drift is measured on %s: it has no text of two tokens or more.", set_name
                )

    def _drift(self, set_name: str, texts: Sequence[ForcedText]) -> dict[str, tuple[Drift, ...]]:
        """Every text under the direction's own conditions, the first ``n_control`` under those of
        the controls.
        """
        own = self._drift_stage(
            set_name, f"drift {set_name}", texts, dict.fromkeys(STOPPING, self.direction)
        )
        controls = {
            f"{name}-{action}": control
            for action in STOPPING
            for name, control in self.controls.items()
        }
        if not controls:
            return own
        some = texts[: self.config.n_control]
        return {
            **own,
            **self._drift_stage(set_name, f"drift {set_name}{WITH_CONTROLS}", some, controls),
        }

    def _drift_stage(
        self,
        set_name: str,
        name: str,
        texts: Sequence[ForcedText],
        directions: dict[str, Direction],
    ) -> dict[str, tuple[Drift, ...]]:
        """One stage for all ``directions``, by condition; the baseline's file is written with the
        direction's own.
        """
        own = "ablation" in directions
        paths = {
            condition: self._drift_file(set_name, condition)
            for condition in (*([BASELINE] if own else []), *directions)
        }
        inputs = {
            "texts": [asdict(text) for text in texts],
            "direction": self._direction_hash
            if own
            else file_sha256(self.folder.path / "controls.safetensors"),
        }

        def work() -> None:
            conditions = {
                condition: interventions_for(condition, d) for condition, d in directions.items()
            }
            found = measure_drift(self.model, texts, conditions, name.removeprefix("drift "))
            for condition, path in paths.items():
                write_jsonl(path, to_json(found[condition]))

        self.folder.stage(name, inputs, list(paths.values()), work)
        return {condition: read_drift(path) for condition, path in paths.items()}

    def _drift_file(self, set_name: str, condition: str) -> Path:
        return self.folder.path / "drift" / f"{set_name}.{condition}.jsonl"


def refresh_verdicts(folder: RunFolder, stage: str, paths: Sequence[Path]) -> None:
    """Judge a stage's completions anew where another version of this program has judged them; they
    stay as they are.

    Raises:
        RunFolderError: a file is damaged.
    """

    def work() -> None:
        record = folder.manifest["stages"][stage]
        if record.get("program") == program():
            return
        for path in paths:
            rows = read_completions(path)
            again = judged_again(rows)
            changed = sum(row != new for row, new in zip(rows, again, strict=True))
            if changed:
                log.warning(
                    "%s: the verdict of %d completion(s) is another one than it was.", path, changed
                )
                write_jsonl(path, to_json(again))
                record["files"][path.name] = file_sha256(path)
        record["program"] = program()
        folder.save()

    parallel.only_writer(work)


def warn_of_no_answers(baseline: Sequence[Completion], set_name: str) -> None:
    """Say so where the unmodified model gives no answer at all: no rate then says anything about
    refusal.
    """
    if not baseline or any(row.verdict != "degenerate" for row in baseline):
        return
    thinking = sum(not split(row.completion).finished for row in baseline)
    why = (
        f"{thinking} are still thinking when the limit comes"
        if thinking
        else "they are empty, loops or no language"
    )
    mend = "Raise --max-new-tokens." if thinking else "Check the model and its chat template."
    log.warning(
        "None of the %d baseline completions of %s is an answer: %s. %s",
        len(baseline),
        set_name,
        why,
        mend,
    )


def check_completions_of(folder: RunFolder, config: RunConfig, prompts: PromptSplits) -> None:
    """Before more is measured on a run: its completions must be of the prompts that its
    configuration gives.

    Raises:
        RunFolderError: they are not, or a file is damaged.
    """
    pools = {"harmful": prompts.test.harmful, "harmless": prompts.test.harmless}
    for set_name, condition in CONDITIONS:
        path = folder.completions(set_name, condition)
        if path.is_file():
            check_completions(read_completions(path), pools[set_name][: config.n_test], str(path))


def read_drift(path: Path) -> tuple[Drift, ...]:
    """The drift of one file.

    Raises:
        RunFolderError: it cannot be read, or a row is something else.
    """
    found = read_lines(path, Drift)
    for number, row in enumerate(found, start=1):
        if not row.nats or len(row.nats) != len(row.kl):
            raise damaged(
                path,
                f"line {number}: {len(row.nats)} nats and {len(row.kl)} kl, not as many of both",
            )
    return found
