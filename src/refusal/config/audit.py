"""The options of an audit beside those of the run that it starts from."""

from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from refusal.config.options import STRICT, Count
from refusal.config.run_config import RunConfig, wrong_value


class AuditOptions(BaseModel):
    """Which attacks are tried, and what they may cost."""

    model_config = STRICT

    attacks: tuple[str, ...] = ()
    """Attacks that are tried beside the textbook one; by default all."""
    budget_minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Minutes that all searching attacks together may search for, in equal shares; by default each
    ends by itself.
    """
    budget_tokens: Count | None = None
    """Tokens through the model that all searching attacks together may take, in equal shares: the
    budget that gives the same on every machine.
    """
    damage_limit: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """KL divergence (nats, first token, harmless validation prompts) that an attack may cost to
    count as one.
    """
    ranks: Annotated[int, Field(ge=1, le=5)] = 5
    """Largest number of directions that are taken out together."""


class AuditConfig(AuditOptions, RunConfig):
    """Everything that decides the result of an audit."""


def audit_config(run: RunConfig, **given: Any) -> AuditConfig:
    """The configuration of an audit: that of the run that it starts from, and its own options.

    Raises:
        ConfigError: a value cannot be used.
    """
    own = {**run.model_dump(), **given}
    try:
        return AuditConfig(**own)
    except ValidationError as error:
        raise wrong_value(error) from error
