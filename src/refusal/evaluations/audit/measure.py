"""Every arm on test prompts, which no search has seen: completions and their rates.

completions/<set>.<arm>.jsonl    each completion with its verdict, as in a run
"""

from collections.abc import Callable, Iterable, Sequence

from refusal.config.audit import AuditConfig
from refusal.core.records import Completion, Metric, to_json
from refusal.core.storage import write_jsonl
from refusal.core.work import Work, Write
from refusal.evaluations.audit.arms import Ready, alike, prepared, read_arms, written_under
from refusal.evaluations.audit.records import BASELINE, AttackRecord
from refusal.evaluations.audit.search import attacks_of, audited
from refusal.evaluations.refusal.completions import Wanted, generate_together
from refusal.evaluations.refusal.curves import curve
from refusal.evaluations.refusal.generate import refresh_verdicts, sizes_of
from refusal.evaluations.refusal.rates import measure_all
from refusal.model.chat_model import ChatModel
from refusal.runs.files import read_completions
from refusal.runs.folder import Step, prompts_hash
from refusal.runs.inputs import check_prompts
from refusal.runs.stage import Plan, Run, Stage

HARMFUL, HARMLESS = "harmful", "harmless"
Key = tuple[str, str]  # set and arm


def measured_arms(run: Run) -> tuple[list[AttackRecord], list[Ready]]:
    """What the attacks came to, and their arms; only after the searches."""
    return read_arms(run.folder.path, list(attacks_of(audited(run.asked))))


def best_arms(records: Sequence[AttackRecord]) -> dict[str, AttackRecord]:
    """By the name of its best arm each attack that could be made, controls among them."""
    found: dict[str, AttackRecord] = {}
    for record in records:
        if record.kind == "control":
            found.update({arm.name: record for arm in record.arms})
        elif record.chosen is not None:
            found.setdefault(record.chosen, record)
    return found


class Completed(Stage):
    """Completions of the harmful test prompts under every arm; of over-refusal sets under the best
    arm of each attack; of harmless prompts under those of edits.
    """

    name = "complete"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Every completion, at most."""
        config, found = plan.config, list[Work]()
        assert isinstance(config, AuditConfig)
        attacks = attacks_of(config).values()
        arms = 1 + sum(attack.arms(config) for attack in attacks)
        for name, n in sizes_of(plan).items():
            each = arms if name == HARMFUL else 2 + len(attacks)
            found.append(Write(n * each, config.new_tokens, plan.lengths.test, each))
        return found

    def check(self, model: ChatModel) -> None:
        """Every prompt with its completion must fit into the model's context."""
        for pool in self.asked.measured.values():
            check_prompts(model, pool, self.asked.config.new_tokens)

    def work(self, run: Run) -> Iterable[Metric]:
        """Write what is missing, all arms that ask the model alike side by side; then count."""
        _, arms = measured_arms(run)
        keys = self._keys(run)
        by_name = {arm.name: arm for arm in arms}
        for names in alike({arm.name: arm.setting for arm in arms}):
            self._write(run, [(key[0], by_name[key[1]]) for key in keys if key[1] in names])
        for set_name, name in keys:
            path = run.folder.completions(set_name, name)
            refresh_verdicts(run.folder, f"{self.name} {set_name}.{name}", [path])
        completions = {key: read_completions(run.folder.completions(*key)) for key in keys}
        yield from measure_all(completions)
        for (set_name, name), rows in completions.items():
            yield from curve(rows, set_name, name, run.config.max_new_tokens)

    def _keys(self, run: Run) -> list[Key]:
        """Which arm is asked which set."""
        records, arms = measured_arms(run)
        best = best_arms(records)
        found = []
        for set_name in self.asked.measured:
            for arm in arms:
                asked = arm.name == BASELINE or arm.name in best
                if set_name == HARMLESS:
                    asked = asked and arm.kind != "prompt"
                if asked or set_name == HARMFUL:
                    found.append((set_name, arm.name))
        return found

    def _write(self, run: Run, some: Sequence[tuple[str, Ready]]) -> None:
        """Completions of some sets under some arms, a step each."""
        new, steps = run.config.max_new_tokens, []
        for set_name, arm in some:
            inputs = {
                "prompts": prompts_hash(self.asked.measured[set_name]),
                "max_new_tokens": new,
                "arm": dict(arm.depends),
            }
            if run.config.thinking == "on":
                inputs["thinking_tokens"] = run.config.thinking_tokens
            n = len(self.asked.measured[set_name])
            cost = Write(n, run.config.new_tokens, run.plan.lengths.test)
            path = run.folder.completions(set_name, arm.name)
            steps.append(self.step(f"{set_name}.{arm.name}", inputs, [path], [cost]))

        def work(missing: Sequence[Step], finished: Callable[[Step], None]) -> None:
            wanted, step_of = [], dict[str, Step]()
            for step, (set_name, arm) in zip(steps, some, strict=True):
                if step in missing:
                    setting = arm.setting
                    about = (
                        written_under(setting),
                        setting.direction,
                        self.asked.measured[set_name],
                    )
                    wanted.append(Wanted(f"{set_name}.{arm.name}", *about))
                    step_of[wanted[-1].set_name] = step

            def keep(one: Wanted, rows: tuple[Completion, ...]) -> None:
                step = step_of[one.set_name]
                write_jsonl(step.outputs[0], to_json(rows))
                finished(step)

            with prepared(run.model, some[0][1].setting):
                generate_together(run.model, wanted, new, keep)

        run.folder.do_together(steps, work)
