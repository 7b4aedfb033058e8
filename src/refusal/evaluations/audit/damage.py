"""What the attacks cost the model: drift on texts, and ability, of the best arm of each
attack that edits it.

drift/<text>.<arm>.jsonl           nats and KL of every token
capability/<task>.<arm>.jsonl      one row an item and metric; the aggregates are beside it
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict

from refusal.config.audit import AuditConfig
from refusal.core.records import Metric, to_json
from refusal.core.storage import write_jsonl
from refusal.core.work import Force, Work
from refusal.evaluations.audit.arms import Ready
from refusal.evaluations.audit.attack import Setting
from refusal.evaluations.audit.measure import HARMLESS, best_arms, measured_arms
from refusal.evaluations.audit.records import BASELINE
from refusal.evaluations.audit.search import attacks_of
from refusal.evaluations.capability.rates import capability_metrics
from refusal.evaluations.capability.results import TaskRun
from refusal.evaluations.capability.stage import (
    Benchmarking,
    Under,
    do_benchmark,
    sized_tasks,
    work_of,
)
from refusal.evaluations.capability.tasks import Benchmark
from refusal.evaluations.drift.measure import (
    Drift,
    ForcedText,
    drift_metrics,
    measure_drift,
    own_answers,
)
from refusal.evaluations.drift.stage import OWN_ANSWERS, WRITTEN, OnTexts, read_drift
from refusal.model.edits import Intervention
from refusal.runs.files import read_completions
from refusal.runs.folder import Step
from refusal.runs.stage import Plan, Run


def edited(run: Run) -> list[Ready]:
    """The best arm of each attack that edits the model, and the controls."""
    records, arms = measured_arms(run)
    best = best_arms(records)
    return [arm for arm in arms if arm.setting.condition != BASELINE and arm.name in best]


class AuditDrift(OnTexts):
    """Cross-entropy and KL along the model's own answers and along given texts."""

    name = "drift"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Each text once an arm, at most."""
        config = plan.config
        assert isinstance(config, AuditConfig)
        if not config.drift_tokens:
            return ()
        arms = 2 + sum(one.kind != "prompt" for one in attacks_of(config).values())
        answer = plan.lengths.begins + plan.lengths.test + WRITTEN * config.max_new_tokens
        own = min(config.n_texts, config.n_test) * answer
        others = len(set(config.texts)) * config.n_texts * config.text_tokens
        return (Force(arms * (own + others), own + others),)

    def work(self, run: Run) -> Iterable[Metric]:
        """Measure what is missing; KL over the first tokens only on own answers."""
        if not run.config.drift_tokens:
            return
        for set_name, texts in self._texts(run):
            if texts:
                first = run.config.drift_tokens if set_name == OWN_ANSWERS else None
                yield from drift_metrics(self._measured(run, set_name, texts), set_name, first)

    def _texts(self, run: Run) -> Iterator[tuple[str, Sequence[ForcedText]]]:
        config = run.config
        baseline = read_completions(run.folder.completions(HARMLESS, BASELINE))[: config.n_texts]
        yield OWN_ANSWERS, own_answers(run.model, baseline, config.text_tokens)
        for corpus in self.corpora:
            yield corpus.name, corpus.forced(run.model, config.text_tokens)

    def _measured(
        self, run: Run, set_name: str, texts: Sequence[ForcedText]
    ) -> dict[str, tuple[Drift, ...]]:
        """A step an arm, all that are missing in the same passes, so that the baseline is read
        once.
        """
        arms = {arm.name: arm for arm in edited(run)}
        paths, steps = {}, list[Step]()
        read = sum(len(text.ids) for text in texts)
        for name in (BASELINE, *arms):
            paths[name] = run.folder.path / "drift" / f"{set_name}.{name}.jsonl"
            depends = dict(arms[name].depends) if name in arms else {}
            inputs = {"texts": [asdict(text) for text in texts], "arm": depends}
            about = (f"{set_name}.{name}", inputs, [paths[name]], [Force(read, read)])
            steps.append(self.step(*about))

        def work(missing: Sequence[Step], finished: Callable[[Step], None]) -> None:
            step_of = dict(zip(paths, steps, strict=True))
            names = [name for name in paths if step_of[name] in missing]
            edits = {}
            for name in names:
                edit = arms[name].setting.edit(run.model) if name in arms else None
                if edit is not None:
                    edits[name] = (edit,)
            found = measure_drift(run.model, texts, edits, set_name)
            for name in names:
                write_jsonl(paths[name], to_json(found[name]))
                finished(step_of[name])

        run.folder.do_together(steps, work)
        return {name: read_drift(path) for name, path in paths.items()}


class AuditCapability(Benchmarking):
    """Benchmarks under the best arm of each attack that edits the model."""

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """The items of every benchmark, once an attack."""
        config = plan.config
        assert isinstance(config, AuditConfig)
        times = 2 + sum(one.kind != "prompt" for one in attacks_of(config).values())
        return [work_of(times * n, spec, config) for spec, n in sized_tasks(config)]

    def work(self, run: Run) -> Iterable[Metric]:
        """Run what was not run yet."""
        arms = {arm.name: arm for arm in edited(run)}
        for benchmark in self.benchmarks:
            runs = {BASELINE: self._run(run, benchmark, None)}
            if runs[BASELINE].items:
                runs |= {name: self._run(run, benchmark, arm) for name, arm in arms.items()}
            yield from capability_metrics(runs)

    def _run(self, run: Run, benchmark: Benchmark, arm: Ready | None) -> TaskRun:
        if arm is None:
            under = Under(BASELINE, {"arm": {}}, tuple)
        else:
            setting = arm.setting
            under = Under(
                arm.name, {"arm": dict(arm.depends)}, lambda: _interventions(setting, run)
            )
        return do_benchmark(self, run, benchmark, under, benchmark.spec.items or run.config.n_items)


def _interventions(setting: Setting, run: Run) -> tuple[Intervention, ...]:
    edit = setting.edit(run.model)
    return () if edit is None else (edit,)
