"""The rates of a run: computed from its completions alone."""

from collections.abc import Iterable, Sequence

from refusal.core.records import Metric
from refusal.core.work import Work
from refusal.directions.controls import cosines
from refusal.evaluations.refusal.pairs import completions_of, control_pairs, plain_pairs
from refusal.evaluations.refusal.rates import measure_all
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
        measured = self.asked.measured
        pairs = [*plain_pairs(measured), *control_pairs(measured, run.controls)]
        yield from measure_all(completions_of(run, pairs))
        for name, value in cosines(run.direction, run.controls).items():
            yield Metric("cosine", "direction", name, value, value, value, 1)
