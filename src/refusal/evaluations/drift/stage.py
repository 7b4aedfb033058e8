"""Drift as a stage of a run: on the model's own answers, and on the texts that are named.

drift/<text>.<condition>.jsonl   nats and KL of every token
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import compress, pairwise
from pathlib import Path
from typing import Any

from refusal.core.direction import Direction
from refusal.core.errors import PromptError
from refusal.core.records import Metric, to_json
from refusal.core.storage import file_sha256, write_jsonl
from refusal.core.strict_files import damaged, read_lines
from refusal.core.work import Force, Read, Work
from refusal.evaluations.drift.measure import (
    Drift,
    ForcedText,
    drift_metrics,
    measure_drift,
    own_answers,
)
from refusal.evaluations.drift.texts import Corpus, read_corpus
from refusal.interventions.conditions import (
    BASELINE,
    Condition,
    action_of,
    interventions_for,
    stopping,
)
from refusal.model.chat_model import ChatModel
from refusal.model.contexts import check_rows
from refusal.runs.files import read_completions
from refusal.runs.folder import Step
from refusal.runs.stage import Asked, Plan, Run, Stage

OWN_ANSWERS = "own-answers"
WITH_CONTROLS = " with controls"  # how the step of a text's controls is told from the text's own
TAKEN = (OWN_ANSWERS, "harmful", "harmless", "direction", "judges")  # sets of other metrics
CONTROLS = 2  # controls that are no random directions
WRITTEN = 0.7  # of the tokens that a completion may have: many end early
READ = {"subtraction": 0.5}  # of the blocks, those behind the layer where the direction was read
log = logging.getLogger(__name__)


class OnTexts(Stage):
    """A stage that reads the texts that a run names, each file once."""

    def __init__(self, asked: Asked) -> None:
        """Read the files.

        Raises:
            PromptError: one cannot be read, or its results have no name of their own.
        """
        super().__init__(asked)
        config = asked.config
        folder = Path(config.data_dir).expanduser() if config.data_dir is not None else None
        files = list(dict.fromkeys(config.texts))
        self.corpora = [read_corpus(file, config.n_texts, config.seed, folder) for file in files]
        check_names([corpus.name for corpus in self.corpora], files)


class DriftStage(OnTexts):
    """Cross-entropy and KL along texts under each condition and control."""

    name = "drift"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Each text once a condition; of the controls' the first ones."""
        config = plan.config
        if config.drift_tokens == 0:
            return ()
        controls = config.controls + CONTROLS if config.controls else 0
        own = min(config.n_texts, config.n_test)
        answer = plan.lengths.begins + plan.lengths.test + WRITTEN * config.max_new_tokens
        found: list[Work] = [_forced(plan, own, answer, controls)]
        if (thought := config.new_tokens - config.max_new_tokens) > 0:  # read, and not predicted
            found.append(Read(_passes(plan, own, controls), WRITTEN * thought))
        files = len(dict.fromkeys(config.texts))
        return found + [_forced(plan, config.n_texts, config.text_tokens, controls)] * files

    def check(self, model: ChatModel) -> None:
        """Every text, as it will be cut, must fit into the model's context."""
        tokens = self.asked.config.text_tokens
        for corpus in self.corpora if self.asked.config.drift_tokens else ():
            _check_corpus(model, corpus, tokens)

    def work(self, run: Run) -> Iterable[Metric]:
        """Measure what is not measured yet; KL over the first tokens only on own answers."""
        if run.config.drift_tokens == 0:
            return
        for set_name, texts in self._texts(run):
            if not texts:
                text = "No drift is measured on %s: it has no text of two tokens or more."
                log.warning(text, set_name)
                continue
            first = run.config.drift_tokens if set_name == OWN_ANSWERS else None
            yield from drift_metrics(self._measured(run, set_name, texts), set_name, first)

    def _texts(self, run: Run) -> Iterator[tuple[str, Sequence[ForcedText]]]:
        path, tokens = run.folder.completions("harmless", BASELINE), run.config.text_tokens
        firsts = [row for row in read_completions(path) if not row.sample]
        baseline = firsts[: run.config.n_texts]
        yield OWN_ANSWERS, own_answers(run.model, baseline, tokens)
        for corpus in self.corpora:
            yield corpus.name, corpus.forced(run.model, tokens)

    def _measured(
        self, run: Run, set_name: str, texts: Sequence[ForcedText]
    ) -> dict[str, tuple[Drift, ...]]:
        """Every text under the direction's own conditions, the first ``n_control`` under those of
        the controls; both in the same passes, so that the baseline is read once.
        """
        actions = _actions(run.config.interventions)
        own = dict.fromkeys(actions, run.direction)
        parts = [_Part(set_name, texts, own, run.direction_hash)]
        if run.controls:
            controls = {}
            for action in actions:
                for name, control in run.controls.items():
                    controls[Condition(action, name).name] = control
            path = run.folder.path / "controls.safetensors"
            about, some = f"{set_name}{WITH_CONTROLS}", texts[: run.config.n_control]
            parts.append(_Part(about, some, controls, file_sha256(path)))
        paths = [self._paths(run, set_name, part) for part in parts]
        steps = []
        for part, files in zip(parts, paths, strict=True):
            steps.append(self.step(part.about, part.inputs, list(files.values()), part.costs))

        def work(missing: Sequence[Step], finished: Callable[[Step], None]) -> None:
            todo = [step in missing for step in steps]
            found = _measure(run.model, list(compress(parts, todo)), set_name)
            for step, files in compress(zip(steps, paths, strict=True), todo):
                for condition, path in files.items():
                    write_jsonl(path, to_json(found[condition]))
                finished(step)

        run.folder.do_together(steps, work)
        return {condition: read_drift(path) for files in paths for condition, path in files.items()}

    def _paths(self, run: Run, set_name: str, part: "_Part") -> dict[str, Path]:
        """The files of a part by condition; the baseline's goes with the direction's own."""
        base = [] if part.about.endswith(WITH_CONTROLS) else [BASELINE]
        folder = run.folder.path / "drift"
        return {name: folder / f"{set_name}.{name}.jsonl" for name in (*base, *part.directions)}


@dataclass(frozen=True)
class _Part:
    """Texts measured under some conditions, kept as one step.

    Attributes:
        about: what the step is called. directions: of each condition, what it is about.
        depends: hash of the file that those come from.
    """

    about: str
    texts: Sequence[ForcedText]
    directions: Mapping[str, Direction]
    depends: str

    @property
    def inputs(self) -> dict[str, Any]:
        """What the result depends on."""
        return {"texts": [asdict(text) for text in self.texts], "direction": self.depends}

    @property
    def costs(self) -> Sequence[Work]:
        """The texts once a condition."""
        read = sum(len(text.ids) for text in self.texts)
        return [Force(read * (len(self.directions) + 1), read)]


def _measure(model: ChatModel, parts: Sequence[_Part], set_name: str) -> dict[str, list[Drift]]:
    """All parts at once: each has the first of the same texts."""
    found: dict[str, list[Drift]] = {}
    texts = max((part.texts for part in parts), key=len)
    ends = sorted({0, *(len(part.texts) for part in parts)})
    for start, stop in pairwise(ends):
        directions: dict[str, Direction] = {}
        for part in parts:
            if len(part.texts) >= stop:
                directions.update(part.directions)
        edits = {name: interventions_for(name, direction) for name, direction in directions.items()}
        for condition, drifts in measure_drift(model, texts[start:stop], edits, set_name).items():
            found.setdefault(condition, []).extend(drifts)
    return found


def _actions(further: Sequence[str]) -> tuple[str, ...]:
    """Those that act on all prompts: what acts by a monitor is either one of them or nothing."""
    return tuple(name for name in stopping(further) if action_of(name).when is None)


def _forced(plan: Plan, n: int, length: int | float, controls: int) -> Force:
    """``n`` texts under the baseline and each intervention, the first of them under controls."""
    return Force(_passes(plan, n, controls) * length, n * length)


def _passes(plan: Plan, n: int, controls: int) -> float:
    """How many whole texts are read in all; of the controls' the first ones."""
    some = min(plan.config.n_control, n)
    each = [
        READ.get(action.partition("@")[0], 1.0) for action in _actions(plan.config.interventions)
    ]
    return (1 + sum(each)) * n + controls * sum(each) * some


def check_names(names: Sequence[str], files: Sequence[str]) -> None:
    """Make sure that each file's results have a name of their own.

    Raises:
        PromptError: two are called the same, where case does not count either, or one like another
            set.
    """
    taken = dict.fromkeys(TAKEN, "what is measured under that name anyway")
    for name, file in zip(names, files, strict=True):
        key = name.casefold().removesuffix(WITH_CONTROLS)
        if key in taken:
            raise PromptError(
                f"The results of --texts {file} would be called {name!r}, like {taken[key]}. "
                "Rename the file."
            )
        taken[key] = f"those of {file}"


def _check_corpus(model: ChatModel, corpus: Corpus, tokens: int) -> None:
    """Texts as they will be cut; the instruction before an answer is not."""
    try:
        texts = corpus.forced(model, tokens)
        check_rows(model, [text.ids for text in texts], 0, [text.id for text in texts])
    except PromptError as error:
        raise PromptError(
            f"{corpus.name}: {error} What is read of a text is limited with --text-tokens."
        ) from error


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
