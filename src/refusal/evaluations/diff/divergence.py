"""KL and cross-entropy of every token along the base's own answers, and along given texts.

    drift/own-answers.jsonl   along the base's answers to harmless prompts: nats and KL
    drift/harmful.jsonl       of the first token after harmful prompts
    drift/<text>.jsonl        along given texts: nats

Every model reads the base's token ids.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median

from refusal.config.diff import DiffConfig
from refusal.core.records import Metric, to_json
from refusal.core.stats import Estimate, mean
from refusal.core.storage import file_sha256, remove, write_jsonl
from refusal.core.work import Force, Work
from refusal.evaluations.diff.behaviour import completions_in
from refusal.evaluations.diff.logits import (
    drift_from,
    keep_logits,
    own_drift,
    paths_of,
    read_predicted,
)
from refusal.evaluations.diff.side import KL, TEXTS, Kept, Side, asked_like
from refusal.evaluations.drift.measure import Drift, drift_metrics, own_answers
from refusal.evaluations.drift.stage import OWN_ANSWERS, WRITTEN, OnTexts, read_drift
from refusal.evaluations.drift.texts import Corpus
from refusal.evaluations.refusal.rates import metric
from refusal.interventions.conditions import BASELINE
from refusal.runs.stage import Plan, Run

HARMFUL = "harmful"
CANDIDATE = "candidate"


class Divergence(OnTexts):
    """What a model predicts along texts."""

    name = "divergence"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Every text once, of one model."""
        config = plan.config
        assert isinstance(config, DiffConfig)
        n = min(config.kl_prompts, config.n_test) if config.drift_tokens else 0
        prompt, answer = plan.lengths.begins + plan.lengths.test, WRITTEN * config.drift_tokens
        read = n * (2 * prompt + answer) + len(set(config.texts)) * (
            config.n_texts * config.text_tokens
        )
        return (Force(read, read),) if read else ()

    def work(self, run: Run) -> Iterable[Metric]:
        """Keep what the base predicts, or measure a candidate against it; then the given texts."""
        assert isinstance(run, Side)
        if run.config.drift_tokens:
            for name in (OWN_ANSWERS, HARMFUL):
                if run.base is None:
                    self._keep(run, name)
                elif KL not in run.missing:
                    self._measure(run, run.base, name)
        if TEXTS not in run.missing:
            for corpus in self.corpora:
                self._read(run, corpus)
        return ()

    def _keep(self, run: Side, name: str) -> None:
        """Along the first answers that the base has written itself; of refusals the first token."""
        config = run.config
        assert isinstance(config, DiffConfig)
        tokens = config.drift_tokens if name == OWN_ANSWERS else 1
        answered = "harmless" if name == OWN_ANSWERS else HARMFUL
        rows = completions_in(run.folder.path, answered)[: config.kl_prompts]
        texts = own_answers(run.model, rows, tokens)
        path = drift_path(run.folder.path, name)
        if not texts:  # and nothing of other answers either
            for old in (path, *paths_of(run.folder.path, name)):
                remove(old)
            return
        read = sum(len(text.ids) for text in texts)
        outputs = [path, *paths_of(run.folder.path, name)]

        def work() -> None:
            write_jsonl(path, to_json(keep_logits(run.model, texts, run.folder.path, name)))

        inputs = {"texts": [asdict(text) for text in texts]}
        self.do(run, name, inputs, outputs, work, [Force(read, read)])

    def _measure(self, run: Side, base: Kept, name: str) -> None:
        logits, about = paths_of(base.folder, name)
        if not about.is_file():  # the base has answered nothing
            return
        predicted = read_predicted(base.folder, name)
        path = drift_path(run.folder.path, name)
        read = sum(len(text.ids) for text in predicted.texts)

        def work() -> None:
            with asked_like(run.model, base):
                found = drift_from(run.model, predicted, base.folder, name)
            write_jsonl(path, to_json(found))

        inputs = {"texts": file_sha256(about), "logits": file_sha256(logits)}
        self.do(run, name, inputs, [path], work, [Force(read, read)])

    def _read(self, run: Side, corpus: Corpus) -> None:
        path = drift_path(run.folder.path, corpus.name)
        with asked_like(run.model, run.base):
            texts = corpus.forced(run.model, run.config.text_tokens)

            def work() -> None:
                write_jsonl(path, to_json(own_drift(run.model, texts, corpus.name)))

            read = sum(len(text.ids) for text in texts)
            inputs = {"texts": [asdict(text) for text in texts]}
            if texts:
                self.do(run, f"text {corpus.name}", inputs, [path], work, [Force(read, read)])


def drift_path(folder: Path, name: str) -> Path:
    """Nats and KL of a set of texts."""
    return folder / "drift" / f"{name}.jsonl"


def divergence_metrics(base: Path, candidate: Path, k: int, texts: Sequence[str]) -> list[Metric]:
    """Of a candidate: KL along the base's answers (mean of the first token and over all, with
    intervals over prompts; median and largest over tokens, without), cross-entropy and its change.

    Args:
        base, candidate: folders of the sides.
        k: tokens of an answer; 0 where there is no KL.
        texts: names of the given ones.

    Raises:
        RunFolderError: a file is damaged.
    """
    found: list[Metric] = []
    for name in (*((OWN_ANSWERS, HARMFUL) if k else ()), *texts):
        paths = [drift_path(folder, name) for folder in (base, candidate)]
        if not all(path.is_file() for path in paths):
            continue
        before, after = map(read_drift, paths)
        if name == HARMFUL:
            found += _spread("kl_first_token", name, [drift.kl[0] for drift in after], len(after))
            continue
        drifts = {BASELINE: before, CANDIDATE: after}
        own = k if name == OWN_ANSWERS else None
        found += [m for m in drift_metrics(drifts, name, own) if m.condition == CANDIDATE]
        if name == OWN_ANSWERS:
            found += _answers(after)
    return found


def _answers(drifts: Sequence[Drift]) -> Iterator[Metric]:
    """Median and largest KL over tokens, and of first tokens; their means are there already."""
    n = len(drifts)
    firsts = _spread("kl_first_token", OWN_ANSWERS, [drift.kl[0] for drift in drifts], n)
    every = _spread("kl", OWN_ANSWERS, [value for drift in drifts for value in drift.kl], n)
    for m in (*firsts, *every):
        if m.name.endswith(("_median", "_max")):
            yield m


def _spread(name: str, set_name: str, values: Sequence[float], n: int) -> Iterator[Metric]:
    """Mean with its interval, median and largest without."""
    yield metric(name, set_name, CANDIDATE, mean(values), n)
    for which, value in (("median", median(values)), ("max", max(values))):
        unknown = Estimate(value, -float("inf"), float("inf"))
        yield metric(f"{name}_{which}", set_name, CANDIDATE, unknown, n)
