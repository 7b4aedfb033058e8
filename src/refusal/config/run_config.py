"""The configuration of a run, and its presets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from refusal.config.engines import EngineOptions
from refusal.config.judges import JudgeOptions
from refusal.config.options import (
    CapabilityOptions,
    DriftOptions,
    MeasureOptions,
    ModelOptions,
    PromptOptions,
    ReportOptions,
    SelectionOptions,
    TransferOptions,
)
from refusal.config.rule import Rule
from refusal.config.systems import SYSTEMS
from refusal.config.tables import read_options
from refusal.core.errors import ConfigError
from refusal.core.sampling import Sampling
from refusal.core.secrecy import shown_arguments

# Tokens that a filter by completions reads: the median first sign of extended refusals
# (arXiv 2505.19056) stands at about 300 characters, some 70 tokens.
LATE, LONG = 128, 256


class RunOptions(
    ReportOptions,
    TransferOptions,
    JudgeOptions,
    EngineOptions,
    CapabilityOptions,
    DriftOptions,
    MeasureOptions,
    SelectionOptions,
    PromptOptions,
    ModelOptions,
):
    """The options of a run, all but the model. The defaults are the paper's sizes on the built-in
    prompts.
    """

    @property
    def new_tokens(self) -> int:
        """The most tokens of a completion, a thought's among them where thinking is on."""
        return self.max_new_tokens + (self.thinking_tokens if self.thinking == "on" else 0)

    @property
    def sampling(self) -> Sampling:
        """How completions are drawn.

        Raises:
            ConfigError: several of a prompt, and no temperature.
        """
        return Sampling(self.temperature, self.samples, self.seed)

    @property
    def judged_tokens(self) -> int:
        """Length of completions that prompts are filtered by: late refusals need some room."""
        return self.filter_tokens or min(max(self.max_new_tokens, LATE), LONG)

    @property
    def found_by(self) -> str:
        """The method of the run's own direction."""
        return self.method[0]

    @property
    def rule(self) -> Rule:
        """The selection rule's thresholds."""
        return Rule(self.induce_threshold, self.kl_threshold, self.prune_layers)


class RunConfig(RunOptions):
    """Everything that decides the result of a run."""

    model: str = "embedded"
    """Hub id, folder, .gguf file, or `embedded`."""


def model_options(config: RunConfig) -> ModelOptions:
    """How a run's model is loaded."""
    return ModelOptions(**{name: getattr(config, name) for name in ModelOptions.model_fields})


PRESETS: dict[str, dict[str, Any]] = {
    # Arditi et al. 2024: 128 / 32 / 100 prompts a class, 512 new tokens, every position and layer.
    "paper": {},
    # A first look: as much of that as this machine can do in eight minutes (pipeline/costs/fit.py).
    "quick": {"minutes": 8.0, "selection_risk": 1e-4},
}


def make_config(
    preset: str | None = None, file: str | Path | None = None, **given: Any
) -> RunConfig:
    """A configuration from a preset, a TOML file and given values; the later ones win.

    Raises:
        ConfigError: unknown preset or key, a wrong value, or an unreadable file.
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"Unknown preset {preset!r}. Use {' or '.join(sorted(PRESETS))}.")
    values = {
        **(PRESETS[preset] if preset is not None else {}),
        **(read_options(Path(file)) if file is not None else {}),
    }
    try:
        return RunConfig(**{**values, **given})
    except ValidationError as error:
        raise wrong_value(error) from error


def with_contexts(config: RunConfig) -> RunConfig:
    """The configuration with the built-in system prompts as contexts, where it asks for none."""
    given = (config.transfer_systems, config.transfer_turns, config.transfer_languages)
    return config if any(given) else config.model_copy(update={"transfer_systems": tuple(SYSTEMS)})


def added(config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run with more measured: lists grow, everything else is replaced."""
    grown = {}
    for name in ("over_refusal", "texts", "tasks", "judges"):
        if name in given:
            before = getattr(config, name)
            grown[name] = (*before, *(item for item in given[name] if item not in before))
    return make_config(**{**config.model_dump(exclude_none=True), **given, **grown})


def wrong_value(error: ValidationError) -> ConfigError:
    """The first thing that pydantic complains about, in one message."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return ConfigError(
            f"There is no option {name!r}. The options are {', '.join(RunConfig.model_fields)}."
        )
    given = first["input"]
    given = shown_arguments([given])[0] if isinstance(given, str) else given
    said = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"{name} = {given!r} cannot be used: {said}. Give another value.")
