"""The options of `refusal export` that say how weights are edited."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from refusal.config.exports import NormRule


@dataclass(frozen=True)
class Edit:
    """How `refusal export` edits weights, and what it measures of the edit."""

    intervention: Annotated[
        str,
        Parameter(
            help="What the weights are to do: ablation, projected, per_layer or "
            "kernel@MOST,AT,LEAST,REACH, as in --interventions of a run."
        ),
    ] = "ablation"
    strength: Annotated[
        float | None, Parameter(help="How much is taken out: 1 (the default) is all, 2 reflects.")
    ] = None
    rank: Annotated[
        int | None,
        Parameter(help="Rows of the direction's subspace; default all.", validator=Number(gte=1)),
    ] = None
    norm: Annotated[
        NormRule | None,
        Parameter(
            help="Keep the norm of what each input writes (column), or of what is written to each "
            "dimension of the stream (row, which brings a part of the direction back)."
        ),
    ] = None
    stream: Annotated[
        bool,
        Parameter(
            negative="", help="With --as model: edit the files tensor by tensor, in little memory."
        ),
    ] = False
    n_prompts: Annotated[
        int, Parameter(help="Test prompts to measure the edit on.", validator=Number(gte=1))
    ] = 16
    model: Annotated[
        str | None, Parameter(help="The run's model, where it lies elsewhere now.")
    ] = None


EDIT_DEFAULTS = Edit()
