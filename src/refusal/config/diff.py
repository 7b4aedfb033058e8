"""The options of a comparison of checkpoints beside those of the run that it is made like."""

from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from refusal.config.options import STRICT, Count
from refusal.config.run_config import RunConfig, wrong_value
from refusal.core.errors import ConfigError


class DiffOptions(BaseModel):
    """What is compared, beside the sizes of a run."""

    model_config = STRICT

    kl_prompts: Count = 32
    """Harmless prompts along whose answers KL is taken, and harmful ones for that of the first
    token. What the base predicts there is kept whole on the disk: kl-prompts x drift-tokens x
    vocabulary numbers of 2 or 4 bytes.
    """
    candidate_quantize: Literal["4bit", "8bit"] | None = None
    """Load the candidates' linear layers in 4 or 8 bits, by bitsandbytes; the base stays as
    --quantize says.
    """


class DiffConfig(DiffOptions, RunConfig):
    """Everything that decides the result of a comparison, but for the candidates."""


# Options of a run that a comparison has no use for, and why.
UNUSED = {
    "minutes": "its sizes are --n-test, --n-val, --n-train and --max-new-tokens",
    "temperature": "completions are the likeliest ones, so that they can be paired",
    "engine": "every model is loaded here",
    "tp_plan": "it runs in one process",
    "interventions": "nothing is done to the models",
    "condition_on": "nothing is done to the models",
    "judges": "refusals are told by the built-in detector",
    "seeds": "one direction of the base is looked for",
    "transfer_systems": "the models are asked in one context",
    "transfer_turns": "the models are asked in one context",
    "transfer_languages": "the models are asked in one context",
}


def without_unused(run: RunConfig) -> RunConfig:
    """A run's configuration without what a comparison has no use for."""
    plain = {name: RunConfig.model_fields[name].default for name in (*UNUSED, "samples")}
    return run.model_copy(update=plain)


def diff_config(run: RunConfig, **given: Any) -> DiffConfig:
    """The configuration of a comparison: that of a run, and its own options.

    Raises:
        ConfigError: a value cannot be used, or is of an option that a comparison has no use for.
    """
    for name, why in UNUSED.items():
        value = getattr(run, name)
        if value != RunConfig.model_fields[name].default:
            flag = name.replace("_", "-")
            raise ConfigError(
                f"--{flag} {value!r} is not for refusal diff: {why}. Leave --{flag} out."
            )
    try:
        return DiffConfig(**{**run.model_dump(), **given})
    except ValidationError as error:
        raise wrong_value(error) from error
