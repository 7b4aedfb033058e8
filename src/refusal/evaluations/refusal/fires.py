"""How often a run's monitor fires on the prompts that are measured, as a stage: what interventions
that act by it can change at all.

fires.json   the monitor's logit of every prompt, by set and id
"""

from collections.abc import Iterable, Sequence

from refusal.core.records import Metric
from refusal.core.stats import rate
from refusal.core.storage import write_json
from refusal.core.strict_files import read_one
from refusal.core.work import Read, Work
from refusal.directions.monitor.reading import score_prompts
from refusal.evaluations.refusal.gates import hashes, monitor_of
from refusal.evaluations.refusal.generate import sizes_of
from refusal.evaluations.refusal.rates import metric
from refusal.runs.folder import prompts_hash
from refusal.runs.stage import Asked, Plan, Run, Stage

MONITOR = "monitor"  # in the condition's place


class Fires(Stage):
    """The share of every set at which the monitor fires; nothing where there is none."""

    name = "fires"

    def __init__(self, asked: Asked) -> None:
        super().__init__(asked)
        self.monitor = monitor_of(asked.config)

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Every prompt once."""
        if plan.config.condition_on is None:
            return ()
        return (Read(sum(sizes_of(plan).values()), plan.lengths.test),)

    def work(self, run: Run) -> Iterable[Metric]:
        """Leave the logits in ``fires.json``, and give the shares above the threshold."""
        monitor = self.monitor
        if monitor is None:
            return
        path, pools = run.folder.path / "fires.json", self.asked.measured
        prompts = [prompt for pool in pools.values() for prompt in pool]
        inputs = {"prompts": prompts_hash(prompts), "monitor": hashes(run.config)}

        def work() -> None:
            scores = score_prompts(run.model, monitor, [p.question for p in prompts])
            left = iter(scores.logits.tolist())
            write_json(path, {name: {p.id: next(left) for p in pools[name]} for name in pools})

        self.do(run, "", inputs, [path], work, self.costs(run.plan))
        saved: dict[str, dict[str, float]] = read_one(path, dict[str, dict[str, float]])
        for name, logits in saved.items():
            hits = [bool(monitor.fires(logit)) for logit in logits.values()]
            yield metric("fires_rate", name, MONITOR, rate(hits), len(hits))
