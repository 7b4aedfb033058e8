"""Which sizes of a run fit a number of minutes.

From those of the configuration (the paper's, unless others are asked for) one step after the other
of the table in ``config/sizes.py`` is given up, until the estimate fits. So a faster machine never
measures less than a slower one.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from refusal.config.run_config import RunConfig
from refusal.config.sizes import ASKED_BY, COARSER, FEWEST_LAYERS, SIZES, STEPS
from refusal.core.errors import ConfigError

MARGIN = 0.1  # of the minutes, left free: how far estimates of whole runs are off


@dataclass(frozen=True)
class Fitted:
    """Sizes that fit.

    Attributes:
        config: with these sizes, and without ``minutes``.
        minutes: that were asked for. seconds: what the whole run should take.
        said: what was chosen and what was left out, a line each.
    """

    config: RunConfig
    minutes: float
    seconds: float
    said: tuple[str, ...]


def sizes(config: RunConfig) -> dict[str, int | None]:
    """Every size that can be given up, by its name."""
    return {name: getattr(config, name) for name in SIZES}


def sizes_given(config: RunConfig) -> dict[str, int | None]:
    """Those that were asked for, on the command line, in a file or in Python; a preset gives
    none.
    """
    return {n: value for n, value in sizes(config).items() if n in config.model_fields_set}


def fit(
    estimate_seconds: Callable[[RunConfig], float],
    base: RunConfig,
    given: Collection[str],
    minutes: float,
    layers: int,
    longest: int | None = None,
) -> Fitted:
    """The largest sizes whose estimate is within the minutes, less the margin.

    Args:
        estimate_seconds: of a whole run, with all that is no stage of it.
        base: the largest sizes.
        given: sizes that must stay as they are.
        minutes: that the run may take.
        layers: of the model; a few must be scored.
        longest: most ``max_new_tokens`` that the model has room for, where that is limited.

    Raises:
        ConfigError: what is given cannot fit, and something smaller would be quicker.
    """
    free = base.model_copy(update={"minutes": None})
    if longest is not None and "max_new_tokens" not in given:
        most = max(1, min(base.max_new_tokens, longest))
        free = free.model_copy(update={"max_new_tokens": most})
    room = 60 * minutes * (1 - MARGIN)
    every = _smaller_and_smaller(free, given, layers)
    config, seconds = _first_that_fits(estimate_seconds, every, room)
    if seconds > room and given:
        every = _smaller_and_smaller(free, (), layers)
        without, quickest = _first_that_fits(estimate_seconds, every, room)
        if quickest < seconds:
            raise ConfigError(_too_much(config, seconds, without, quickest, given, minutes))
    return Fitted(config, minutes, seconds, _said(free, config, seconds, minutes))


def minutes_for(seconds: float) -> int:
    """Whole minutes that hold so many seconds with the margin."""
    return max(1, math.ceil(seconds / 60 / (1 - MARGIN)))


def _first_that_fits(
    estimate_seconds: Callable[[RunConfig], float], configs: Iterable[RunConfig], room: float
) -> tuple[RunConfig, float]:
    """The configuration and its seconds; the last one where none fits."""
    for config in configs:
        seconds = estimate_seconds(config)
        if seconds <= room:
            break
    return config, seconds


def _smaller_and_smaller(
    base: RunConfig, given: Collection[str], layers: int
) -> Iterator[RunConfig]:
    """The configuration itself, then after each step that gives something up."""
    config = base
    yield config
    for name, to in STEPS:
        if name in given or not _asked(config, name) or not _less(name, getattr(config, name), to):
            continue
        if name == "layer_step" and base.rule.eligible_layers(layers) <= to * (FEWEST_LAYERS - 1):
            continue
        config = config.model_copy(update={name: to})
        yield config


def _asked(config: RunConfig, name: str) -> bool:
    return bool(getattr(config, ASKED_BY[name])) if name in ASKED_BY else True


def _less(name: str, now: int | None, to: int) -> bool:
    """Whether a size would be less than it is; ``None`` is all there is."""
    return now is None or (to > now if name in COARSER else to < now)


def _said(base: RunConfig, config: RunConfig, seconds: float, minutes: float) -> tuple[str, ...]:
    """A line on what was chosen, one on what is left out or does not fit."""
    shown = []
    for name, value in sizes(config).items():
        most = getattr(base, name)
        instead = "" if value == most else f" {'for' if name in COARSER else 'of'} {_word(most)}"
        if _asked(config, name):
            shown.append(f"{name} {_word(value)}{instead}")
    if seconds <= 60 * minutes * (1 - MARGIN):
        begin = f"Sizes for {minutes:g} min, estimated {_minutes(seconds)}"
    else:
        enough = "are too few" if seconds > 60 * minutes else "hardly leave a margin"
        begin = (
            f"{minutes:g} min {enough}: at the smallest sizes that say something the run should "
            f"take {_minutes(seconds)} (--minutes {minutes_for(seconds)})"
        )
    first = f"{begin}: {', '.join(shown)}."
    lost = base.drift_tokens > 0 and config.drift_tokens == 0
    return (first, "Left out for time: drift (--drift-tokens).") if lost else (first,)


def _word(value: int | None) -> str:
    return "all" if value is None else str(value)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _too_much(
    config: RunConfig,
    seconds: float,
    without: RunConfig,
    quickest: float,
    given: Collection[str],
    minutes: float,
) -> str:
    """What was given, how long it would take, and what would fit."""
    kept = ", ".join(f"{name} {_word(getattr(config, name))}" for name in SIZES if name in given)
    instead = ", ".join(
        f"{name} {_word(getattr(without, name))}" for name in SIZES if name in given
    )
    text = (
        f"{minutes:g} min do not hold {kept}: with all else at its smallest the run should take "
        f"{_minutes(seconds)}. Give --minutes {minutes_for(seconds)}, or"
    )
    if quickest <= 60 * minutes * (1 - MARGIN):
        return f"{text} leave these sizes out: then {instead} would fit."
    return (
        f"{text} --minutes {minutes_for(quickest)} without these sizes: then {instead} would fit."
    )


def read_back(record: Mapping[str, Any], config: RunConfig) -> RunConfig | None:
    """The configuration with sizes that were chosen before, if it was for the same request."""
    if record["minutes"] != config.minutes or record["given"] != sizes_given(config):
        return None
    return config.model_copy(update={**record["sizes"], "minutes": None})


def to_record(base: RunConfig, fitted: Fitted) -> dict[str, Any]:
    """What the manifest keeps of a choice: what was asked, what was chosen, what was said."""
    return {
        "minutes": fitted.minutes,
        "given": sizes_given(base),
        "sizes": sizes(fitted.config),
        "seconds": round(fitted.seconds, 1),
        "said": list(fitted.said),
    }
