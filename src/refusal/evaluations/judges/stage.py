"""Judging the completions of a run by further judges, as the last of its stages: resumable item by
item.

    judgements/<judge>/<set>.<condition>.jsonl   one judgement a line, written as each comes
    judgements/agreement.json                    every two judges of one kind, over all completions
    judgements/<judge>/calibration.json          threshold of a local judge, how often it is right

Rows that are there are kept while the completions and the judge's options are the same; failed ones
are asked again. Which those were, and what the judge has cost, is in ``manifest.json``.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from refusal.config.run_config import RunConfig
from refusal.core import parallel
from refusal.core.errors import ConfigError, RunFailure
from refusal.core.progress import task
from refusal.core.records import Completion, Metric, to_json
from refusal.core.stats import Accuracy
from refusal.core.storage import append_jsonl, write_json, write_jsonl
from refusal.core.work import Work
from refusal.evaluations.judges.agreement import Agreement, agreement
from refusal.evaluations.judges.calibration import read_calibration
from refusal.evaluations.judges.judgement import Judgement
from refusal.evaluations.judges.make import judge_class, make_judges
from refusal.evaluations.judges.protocol import Judge
from refusal.evaluations.judges.rates import judge_metrics
from refusal.evaluations.judges.reading import match_judgements, read_judgements, unjudged
from refusal.evaluations.refusal.generate import sizes_of
from refusal.evaluations.refusal.pairs import actions_on, completions_of, plain_pairs
from refusal.evaluations.refusal.rates import accuracy_metrics
from refusal.runs.folder import RunFolder
from refusal.runs.identity import digest
from refusal.runs.stage import Asked, Plan, Run, Stage

Completions = Mapping[tuple[str, str], Sequence[Completion]]  # by (set, condition)
DETECTOR = "detector"
MANY_FAILED = 0.2  # of a judge's judgements: worth a warning

log = logging.getLogger(__name__)


class Judging(Stage):
    """Further judges of the completions; the built-in detector's verdict every one has anyway."""

    name = "judge"

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self.judges = judges_for(asked.config)

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """What each judge says of itself, for every completion."""
        config, n = plan.config, 0
        for name, rows in sizes_of(plan).items():
            n += rows * config.samples * (1 + len(actions_on(name, config.interventions)))
        length = plan.lengths.begins + plan.lengths.test + config.max_new_tokens
        found: list[Work] = []
        for spec in dict.fromkeys(config.judges):
            found += judge_class(spec).costs(spec.partition("=")[2], config, n, length)
        return found

    def work(self, run: Run) -> Iterable[Metric]:
        """What every judge says of every set and condition, and how far the judges agree.

        Raises:
            JudgeError: an endpoint cannot be asked; what was judged until then stays.
        """
        if not self.judges:
            return ()
        completions = completions_of(
            run, plain_pairs(self.asked.measured, run.config.interventions)
        )
        return judge_all(run.folder, run.config, self.judges, completions)


def judge_all(
    folder: RunFolder, config: RunConfig, judges: Mapping[str, Judge], completions: Completions
) -> tuple[Metric, ...]:
    """Judge the completions of a run, those that were not judged yet."""
    return _AtWork(folder, config, judges).metrics(completions)


def judges_for(config: RunConfig) -> dict[str, Judge]:
    """The judges that a configuration names, by that.

    Raises:
        UsageError: an unknown judge, or one that cannot be had.
    """
    specs = [spec for spec in dict.fromkeys(config.judges) if spec != DETECTOR]
    for spec in specs:
        if config.tp_plan is not None and "=" not in spec and judge_class(spec).own:
            raise ConfigError(
                f"{spec} asks the run's own model, and --tp-plan splits that over processes. "
                f"Name another model, {spec}=MODEL, or judge later without --tp-plan."
            )
    return dict(zip(specs, make_judges(specs, config), strict=True))


@dataclass(frozen=True)
class _AtWork:
    """The judges of a run at work on its completions."""

    folder: RunFolder
    config: RunConfig
    judges: Mapping[str, Judge]

    def metrics(self, completions: Completions) -> tuple[Metric, ...]:
        """What every judge says of every set and condition, and how far the judges agree."""
        found: list[Metric] = []
        said: dict[str, list[Judgement]] = {DETECTOR: _verdicts(completions)}
        kinds = {DETECTOR: "refusal", **{judge.name: judge.kind for judge in self.judges.values()}}
        for spec, judge in self.judges.items():
            said[judge.name] = []
            if self.folder.model is not None:
                judge.use(self.folder.model)
            judged = {}
            for key, rows in completions.items():
                judged[key] = self._judge(spec, judge, *key, rows)
            accuracy = self._accuracy(judge)
            found += () if accuracy is None else accuracy_metrics(judge.name, accuracy)
            for key, judgements in judged.items():
                asked = [row.prompt_id for row in completions[key]]
                found += judge_metrics(judge.name, judge.kind, judgements, *key, accuracy, asked)
                said[judge.name] += _named(judgements, *key)
            judge.finish()
        pairs, whose = [], _prompts_of(completions)
        for first, second in combinations(said, 2):
            if kinds[first] == kinds[second] != "score" and any(j.label for j in said[second]):
                pairs.append(agreement(first, said[first], second, said[second], whose))
        write_json(self.folder.path / "judgements" / "agreement.json", to_json(pairs))
        return (*found, *(metric for pair in pairs for metric in _agreement(pair)))

    def _judge(
        self, spec: str, judge: Judge, set_name: str, condition: str, rows: Sequence[Completion]
    ) -> list[Judgement]:
        """The judgements of one file, in the order of its completions."""
        path = self.folder.path / "judgements" / judge.name / f"{set_name}.{condition}.jsonl"
        records = self.folder.manifest.setdefault("judges", {})
        record = records.setdefault(judge.name, {"inputs": {}})
        inputs = self._inputs(spec, judge, rows)
        same = record["inputs"].get(f"{set_name}.{condition}") == inputs and not judge.given
        kept = [j for j in read_judgements(path) if not j.failed] if same and path.is_file() else []
        missing = unjudged(kept, rows, str(path))
        parallel.wait()

        def ask() -> None:
            write_jsonl(path, to_json(kept))  # without what failed or was cut off
            record["inputs"][f"{set_name}.{condition}"] = inputs
            self.folder.save()
            with task(
                f"judge: {judge.name}, {set_name}, {condition}", len(missing), "completions"
            ) as advance:
                for judgement in judge.judge(missing):
                    append_jsonl(path, to_json(judgement))
                    advance(1)
            if judge.calibrated:  # null for a model that was never compared with people
                found = judge.calibration
                write_json(self._calibration(judge), None if found is None else to_json(found))

        if parallel.decided(lambda: bool(missing)):
            parallel.only_writer(ask)
        if judge.spent is not None:
            record["last_usage"] = dict(judge.spent)
            self.folder.save()
        found = match_judgements(read_judgements(path), rows, str(path))
        return [found[row.key] for row in rows]

    def _calibration(self, judge: Judge) -> Path:
        return self.folder.path / "judgements" / judge.name / "calibration.json"

    def _accuracy(self, judge: Judge) -> Accuracy | None:
        """How often a judge that was compared with people is right."""
        path = self._calibration(judge)
        if not judge.calibrated or not path.is_file():
            return judge.accuracy
        kept = read_calibration(path)
        return None if kept is None else kept.accuracy

    def _inputs(self, spec: str, judge: Judge, rows: Sequence[Completion]) -> str:
        """A hash of what judgements depend on: the completions, who is asked and where, the rule
        for short ones.
        """
        given = self.config
        asked = [
            spec,
            given.judge_url,
            given.short_is_safe,
            given.judge_max_tokens,
            given.judge_dtype,
        ]
        asked += judge.rests_on(rows)
        completions = [[row.key, row.prompt, row.completion] for row in rows]
        return digest([str(Judging.version), asked, _files_of(spec), completions])


def check_judged(folder: RunFolder, judges: Mapping[str, Judge]) -> None:
    """Say so where a judge has failed on many completions; people's labels may be of a few.

    Raises:
        RunFailure: every judgement of a judge failed, so that it says nothing.
    """
    for judge in judges.values():
        files = sorted((folder.path / "judgements" / judge.name).glob("*.jsonl"))
        found = [judgement for file in files for judgement in read_judgements(file)]
        failed = [judgement.error or "" for judgement in found if judgement.failed]
        if judge.given or not failed:
            continue
        reason, times = Counter(failed).most_common(1)[0]
        why = f"{reason}{'' if times == len(failed) else f', {times} times'}"
        again = (
            "Look at the judge, then start the same command again: only failed ones are asked "
            "again."
        )
        if len(failed) == len(found):
            raise RunFailure(
                f"All {len(found)} judgements of {judge.name} failed ({why}), so it has no rates. "
                f"What else was measured is in {folder.path}. {again}"
            )
        if len(failed) >= MANY_FAILED * len(found):
            log.warning(
                "%d of %d judgements of %s failed (%s): its rates are over the others. %s",
                len(failed),
                len(found),
                judge.name,
                why,
                again,
            )


def _files_of(spec: str) -> list[list[Any]]:
    """The files of a classifier in a folder, as far as one can tell without reading its weights."""
    folder = Path(spec.partition("=")[2] or ".").expanduser()
    if not spec.partition("=")[2] or not folder.is_dir():
        return []
    stats = [(path, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def _verdicts(completions: Completions) -> list[Judgement]:
    """The detector's verdicts as judgements."""
    found = []
    for (set_name, condition), rows in completions.items():
        verdicts = [Judgement(row.key, row.verdict) for row in rows]
        found += _named(verdicts, set_name, condition)
    return found


def _named(judgements: Sequence[Judgement], set_name: str, condition: str) -> list[Judgement]:
    """With ids that are unique over all files."""
    place = f"{set_name}.{condition}"
    return [replace(each, prompt_id=f"{place}.{each.prompt_id}") for each in judgements]


def _prompts_of(completions: Completions) -> dict[str, str]:
    """The prompt of every judgement, both with ids that are unique over all files."""
    found = {}
    for (set_name, condition), rows in completions.items():
        place = f"{set_name}.{condition}"
        found.update({f"{place}.{row.key}": f"{place}.{row.prompt_id}" for row in rows})
    return found


def _agreement(pair: Agreement) -> list[Metric]:
    if pair.share is None:
        return []
    who = f"{pair.first}/{pair.second}"
    found = [Metric("agreement", "judges", who, pair.share, pair.low, pair.high, pair.n)]
    if pair.kappa is not None:
        found.append(
            Metric("kappa", "judges", who, pair.kappa, float("-inf"), float("inf"), pair.n)
        )
    return found
