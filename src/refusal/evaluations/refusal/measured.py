"""The rates of a run: computed from its completions alone."""

from collections.abc import Iterable, Sequence

from refusal.core.records import Metric
from refusal.core.work import Work
from refusal.directions.controls import cosines
from refusal.evaluations.refusal.pairs import completions_of, control_pairs, plain_pairs
from refusal.evaluations.refusal.rates import measure_all
from refusal.interventions import INTERVENTIONS
from refusal.runs.stage import Plan, Run, Stage


class Rates(Stage):
    """Refusal by set and condition with intervals, and how alike the controls are."""

    name = "rates"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """No model is run."""
        return ()

    def work(self, run: Run) -> Iterable[Metric]:
        """Every rate, its correction and its change from the baseline."""
        measured, further = self.asked.measured, run.config.interventions
        plain = plain_pairs(measured, further)
        pairs = [*plain, *control_pairs(measured, run.controls, further)]
        yield from measure_all(completions_of(run, pairs))
        for name, value in cosines(run.direction, run.controls).items():
            yield Metric("cosine", "direction", name, value, value, value, 1)
        for name in further:
            yield from INTERVENTIONS[name].numbers(run.direction)
