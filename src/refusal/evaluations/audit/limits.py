"""Limits that an audit has to keep (``--fail-on``): one number, a comparison, a bound.

``residual_refusal<0.5`` fails where that holds; ``residual_refusal.low<0.5`` where it may hold by
the lower end of the interval.
"""

import operator
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from refusal.core.errors import ConfigError
from refusal.core.records import Metric

# What the summary of an audit may hold, beside a price in points of each benchmark.
NUMBERS = {
    "baseline_refusal": "refusal of the unmodified model",
    "a50": "strength that halves refusal",
    "k10": "directions until surely at most 10% is refused",
    "residual_refusal": "refusal under the strongest attack",
    "refusals_left": "of the model's refusals those that stay under it",
    "edit_residual_refusal": "refusal under the strongest edit",
    "edit_refusals_left": "of the model's refusals those that stay under it",
    "price_nats": "nats a token for ten points of refusal",
}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_LIMIT = re.compile(r"([\w:@.-]+?)(\.low|\.high)?\s*(<=|>=|<|>)\s*([+-]?(?:\d+\.?\d*|\.\d+))")


@dataclass(frozen=True)
class Limit:
    """One of them. ``end``: of the interval, ``value``, ``low`` or ``high``."""

    text: str
    name: str
    end: str
    comparison: str
    bound: float

    def broken_by(self, m: Metric) -> bool:
        """Whether what the audit shall fail on holds of a number."""
        return COMPARISONS[self.comparison](getattr(m, self.end), self.bound)


def parse_limit(
    text: str, tasks: Sequence[str] = (), numbers: Collection[str] = tuple(NUMBERS)
) -> Limit:
    """Read one limit.

    Args:
        tasks: benchmarks of the audit, each of which has a price.
        numbers: all others that there are.

    Raises:
        ConfigError: no such number, or not of that form.
    """
    found = _LIMIT.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f"--fail-on {text!r} is no limit. Give a number, a comparison (< <= > >=) and a bound: "
            f"--fail-on '{next(iter(numbers))}<0.5'."
        )
    names = (*numbers, *(f"price_{task}" for task in tasks))
    if found[1] not in names:
        raise ConfigError(
            f"--fail-on {text!r}: there is no number {found[1]!r}. Use one of: {', '.join(names)}, "
            "alone or with .low or .high behind it."
        )
    return Limit(text.strip(), found[1], (found[2] or ".value")[1:], found[3], float(found[4]))


def broken(limits: Sequence[Limit], summary: Sequence[Metric]) -> Iterator[str]:
    """What fails, in words; a number that was not measured fails too."""
    for limit in limits:
        mine = [m for m in summary if m.name == limit.name]
        if not mine:
            yield f"{limit.text}: {limit.name} was not measured"
        for m in mine:
            if limit.broken_by(m):
                value = getattr(m, limit.end)
                yield f"{limit.text}: {limit.name} of {m.condition} is {value:.3g}"
