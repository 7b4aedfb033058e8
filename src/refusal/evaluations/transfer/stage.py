"""A direction found in each context, used in every context, as a stage of a run.

transfer/<context>.json                    its refusal tokens, or why it has no direction
transfer/<context>.direction.safetensors   its direction
transfer/<context>.<row>.jsonl             completions there, a row's direction ablated
transfer/<context>.bypass.json             the refusal metric of every prompt, by row
transfer.json                              the table

The model is loaded once. In a context all rows are written side by side, the baseline among them,
so what its prompts begin with is read once a row.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from refusal.core.direction import Direction
from refusal.core.records import Completion, Metric, Prompt, PromptPair, RefusalTokens, to_json
from refusal.core.stats import rate
from refusal.core.storage import file_sha256, write_json, write_jsonl
from refusal.core.strict_files import read_one
from refusal.core.work import Read, Work, Write, side_by_side
from refusal.detector.accuracy import accuracy_in
from refusal.directions.controls import random_directions
from refusal.evaluations.refusal.completions import Wanted, generate_together
from refusal.evaluations.refusal.generate import refresh_verdicts
from refusal.evaluations.refusal.rates import REFUSED
from refusal.evaluations.transfer.bypass import metrics_under
from refusal.evaluations.transfer.contexts import Context, contexts_of, in_context, is_own
from refusal.evaluations.transfer.finding import Found, Search, context_key
from refusal.evaluations.transfer.record import (
    FILE,
    RANDOM,
    ContextRow,
    TransferCell,
    TransferTable,
    read_transfer,
)
from refusal.interventions.conditions import BASELINE
from refusal.model.chat_model import ChatModel
from refusal.prompts.languages import LanguagePrompts, load_language
from refusal.runs.files import read_completions
from refusal.runs.finding import Extract, Select, Tokens
from refusal.runs.folder import Step, prompts_hash
from refusal.runs.inputs import check_prompts
from refusal.runs.stage import Asked, Plan, Run, Stage

Rows = dict[str, tuple[Direction, str]]  # by row: a direction, and a hash of what it is


class Transfer(Stage):
    """Directions of several contexts, each ablated in every context."""

    name = "transfer"

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        config, prompts = asked.config, asked.prompts
        self.contexts = contexts_of(config)
        used = [p for pair in (prompts.train, prompts.val) for p in (*pair.harmful, *pair.harmless)]
        folder = Path(config.data_dir).expanduser() if config.data_dir is not None else None
        self.languages: dict[str, LanguagePrompts] = {}
        for language in config.transfer_languages:
            self.languages[language] = load_language(
                language,
                folder,
                seed=config.seed,
                apart_from=used,
                published="paper" in config.prompts,
            )

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """A search in every context but the run's own, and the test prompts in each under every
        row; not counted is that prompts are longer there, and that languages are only used in.
        """
        contexts = contexts_of(plan.config)
        if not contexts:
            return ()
        search = (*Tokens.costs(plan), *Extract.costs(plan), *Select.costs(plan))
        own = [is_own(context, plan.config) for context in contexts]
        column = cls._column(plan, len(own))
        return [*search * own.count(False), *column * len(own)]

    @staticmethod
    def _column(plan: Plan, contexts: int) -> list[Work]:
        config, length, rows = plan.config, plan.lengths.test, contexts + 2
        write = Write(rows * config.n_test, config.new_tokens, length, rows)
        return [*side_by_side([write]), Read(rows * config.n_test, length)]

    def check(self, model: ChatModel) -> None:
        """The template must take every context, and every prompt fit into it."""
        new = self.asked.config.new_tokens
        for context in self.contexts:
            train, val = self._pairs(context)
            used = [p for pair in (train, val) for p in (*pair.harmful, *pair.harmless)]
            with in_context(model, context):
                check_prompts(model, self._test(context), new)
                check_prompts(model, used)

    def work(self, run: Run) -> Iterable[Metric]:
        """Find the directions, use them, and leave the table in ``transfer.json``."""
        if not self.contexts:
            return
        found = {context.name: self._found(run, context) for context in self.contexts}
        rows: Rows = {}
        for name, one in found.items():
            if one.direction is not None:
                rows[name] = (one.direction, str(one.sha256))
        controls = random_directions(run.direction, len(self.contexts), run.config.seed)
        written: list[Path] = []
        for context, control in zip(self.contexts, controls.values(), strict=True):
            here = {**rows, RANDOM: (control, f"{run.config.seed}")}
            tokens = found[context.name].tokens or run.tokens
            with in_context(run.model, context):
                written += self._complete(run, context, here)
                written.append(self._bypass(run, context, here, tokens))
        inputs = {
            "direction": run.direction_hash,
            "contexts": [[one.name, *context_key(one)] for one in self.contexts],
            "found": [[name, one.sha256, one.why] for name, one in found.items()],
            "files": [[path.name, file_sha256(path)] for path in written],
            "detector": [_detector(one.language) for one in self.contexts],
        }

        def table() -> None:
            self._table(run, found).save(run.folder.path)

        self.do(run, "table", inputs, [run.folder.path / FILE], table)
        yield from read_transfer(run.folder.path).metrics()

    def _found(self, run: Run, context: Context) -> Found:
        """The direction of a context; the run's own is there already."""
        if is_own(context, run.config):
            return Found(run.direction, run.direction_hash, run.tokens)
        train, val = self._pairs(context)
        if not (train.harmless and val.harmless):
            return Found(why=f"no harmless prompts in {context.language} to compare with")
        search = Search(context, train, val, run.folder.path / "transfer")
        cost = (*Tokens.costs(run.plan), *Extract.costs(run.plan), *Select.costs(run.plan))
        about = (f"find {context.name}", search.inputs(run), [search.summary])
        self.do(run, *about, lambda: search.work(run.model, run.config), cost)
        found = search.read()
        if found.direction is None:
            return found
        return replace(found, direction=replace(found.direction, model=run.model.name))

    def _pairs(self, context: Context) -> tuple[PromptPair, PromptPair]:
        """Training and validation prompts of a context; of a language they may be empty."""
        found = self.asked.prompts if context.language is None else self.languages[context.language]
        return found.train, found.val

    def _test(self, context: Context) -> tuple[Prompt, ...]:
        """The harmful test prompts of a context."""
        if context.language is None:
            return self.asked.measured["harmful"]
        return self.languages[context.language].test[: self.asked.config.n_test]

    def _complete(self, run: Run, context: Context, rows: Rows) -> list[Path]:
        """Completions in a context, under the baseline and under the ablation of every row, side by
        side; those that are there stay.
        """
        test, config = self._test(context), run.config
        wanted = [Wanted(context.name, BASELINE, run.direction, test)]
        wanted += [Wanted(context.name, "ablation", row, test) for row, _ in rows.values()]
        names, paths = [BASELINE, *rows], [_path(run, context, name) for name in (BASELINE, *rows)]
        steps = []
        for name, path in zip(names, paths, strict=True):
            inputs = {
                "context": context_key(context),
                "prompts": prompts_hash(test),
                "row": None if name == BASELINE else rows[name][1],
                "control": context.name if name == RANDOM else None,
                "max_new_tokens": config.max_new_tokens,
                **({"thinking": config.thinking_tokens} if config.thinking == "on" else {}),
            }
            cost = [Write(len(test), config.new_tokens, run.plan.lengths.test)]
            steps.append(self.step(f"{context.name}.{name}", inputs, [path], cost))

        def work(missing: Sequence[Step], finished: Callable[[Step], None]) -> None:
            todo = [i for i, step in enumerate(steps) if step in missing]
            chosen = [wanted[i] for i in todo]

            def keep(one: Wanted, rows: tuple[Completion, ...]) -> None:
                i = next(i for i in todo if wanted[i] is one)
                write_jsonl(paths[i], to_json(rows))
                finished(steps[i])

            generate_together(run.model, chosen, config.max_new_tokens, keep)

        run.folder.do_together(steps, work)
        for step, path in zip(steps, paths, strict=True):
            refresh_verdicts(run.folder, step.name, [path])
        return paths

    def _bypass(self, run: Run, context: Context, rows: Rows, tokens: RefusalTokens | None) -> Path:
        """The refusal metric of every test prompt of a context, by row."""
        test = self._test(context)
        path = run.folder.path / "transfer" / f"{context.name}.bypass.json"
        inputs = {
            "context": context_key(context),
            "prompts": prompts_hash(test),
            "tokens": None if tokens is None else tokens.ids,
            "rows": [[name, digest] for name, (_, digest) in rows.items()],
        }

        def work() -> None:
            if tokens is None:
                write_json(path, {})
                return
            directions = [direction for direction, _ in rows.values()]
            values = metrics_under(run.model, test, directions, tokens.ids)
            write_json(path, dict(zip((BASELINE, *rows), values, strict=True)))

        cost = [Read(len(test) * (len(rows) + 1), run.plan.lengths.test)]
        self.do(run, f"{context.name} bypass", inputs, [path], work, cost)
        return path

    def _table(self, run: Run, found: dict[str, Found]) -> TransferTable:
        """The table, from the files."""
        contexts, cells = [], []
        for context in self.contexts:
            one = found[context.name]
            contexts.append(self._row(run, context, one))
            path = run.folder.path / "transfer" / f"{context.name}.bypass.json"
            values: dict[str, list[float]] = read_one(path, dict[str, list[float]])
            rows = [name for name, other in found.items() if other.direction is not None]
            for name in (BASELINE, *rows, RANDOM):
                completions = read_completions(_path(run, context, name))
                refused = rate([row.verdict in REFUSED for row in completions])
                bypass = fmean(values[name]) if name in values else None
                cosine = None
                if name in found and one.direction is not None:
                    cosine = _cosine(found[name].direction, one.direction)
                about = (refused.value, refused.low, refused.high, len(completions), cosine)
                cells.append(TransferCell(name, context.name, bypass, *about))
        return TransferTable(tuple(contexts), tuple(cells))

    def _row(self, run: Run, context: Context, found: Found) -> ContextRow:
        """What is said of a context."""
        direction, tokens = found.direction, found.tokens or run.tokens
        source = self.asked.prompts.name
        if context.language is not None:
            source = self.languages[context.language].source
        return ContextRow(
            name=context.name,
            system=context.system,
            turns=context.turns,
            language=context.language,
            prompts=source,
            position=None if direction is None else direction.position,
            layer=None if direction is None else direction.layer,
            qualified=None if direction is None else direction.qualified,
            why=found.why,
            tokens=() if tokens is None else tokens.texts,
            own_tokens=found.tokens is not None,
            detector=_detector(context.language),
        )


def _path(run: Run, context: Context, row: str) -> Path:
    return run.folder.path / "transfer" / f"{context.name}.{row}.jsonl"


def _cosine(one: Direction | None, other: Direction) -> float:
    assert one is not None
    return float(one.vector.double() @ other.vector.double())


def _detector(language: str | None) -> str:
    """How often the detector is right on answers in a language, in words."""
    known = accuracy_in(language)
    if known is None:
        return "not validated"
    finds, spares = known.hits + known.misses, known.rejections + known.false_alarms
    return (
        f"finds {known.hits} of {finds} refusals, leaves {known.rejections} of {spares} others "
        f"alone ({known.source})"
    )
