"""The options that several commands take, in the groups that ``--help`` shows."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from pydantic import BaseModel

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
from refusal.config.run_config import RunConfig, make_config
from refusal.directions import METHODS
from refusal.engines import ENGINES
from refusal.interventions import INTERVENTIONS

# What is registered is named here, so that a new method or intervention shows in --help by itself.
for section, name, table in (
    (SelectionOptions, "method", METHODS),
    (MeasureOptions, "interventions", INTERVENTIONS),
    (EngineOptions, "engine", ENGINES),
):
    field_info = section.model_fields[name]
    field_info.description = f"{field_info.description} One of: {', '.join(table)}."

Model = Annotated[
    str | None, Parameter(help="Hub id, folder, .gguf file, or embedded (the default).")
]
Out = Annotated[Path | None, Parameter(help="Run folder; default runs/MODEL.")]
Json = Annotated[
    bool, Parameter(name="--json", negative="", help="Print the result as JSON on stdout.")
]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative="", help="Only errors.")]
Verbose = Annotated[
    bool,
    Parameter(name=["--verbose", "-v"], negative="", help="Also notes, such as reused stages."),
]


def _group(place: int, table: str) -> Parameter:
    """Options as they are called, below a heading that is also their table's name in TOML."""
    return Parameter(name="*", group=Group(table.capitalize(), sort_key=place))


ModelGroup = Annotated[ModelOptions, _group(1, "model")]
PromptsGroup = Annotated[PromptOptions, _group(2, "prompts")]
SelectionGroup = Annotated[SelectionOptions, _group(3, "selection")]
MeasureGroup = Annotated[MeasureOptions, _group(4, "measurements")]
DriftGroup = Annotated[DriftOptions, _group(5, "drift")]
CapabilityGroup = Annotated[CapabilityOptions, _group(6, "capability")]
EngineGroup = Annotated[EngineOptions, _group(7, "engine")]
JudgeGroup = Annotated[JudgeOptions, _group(8, "judges")]
TransferGroup = Annotated[TransferOptions, _group(9, "transfer")]
ReportGroup = Annotated[ReportOptions, _group(10, "report")]


@dataclass(frozen=True)
class Settings:
    """All that makes a run's configuration, but for the model's name."""

    preset: Annotated[
        str | None,
        Parameter(
            help="quick (the paper's sizes as far as 8 minutes allow here) or paper (all of them, "
            "the default)."
        ),
    ] = None
    config: Annotated[
        Path | None, Parameter(help="TOML file with options, such as a run folder's run.toml.")
    ] = None
    loading: ModelGroup = field(default_factory=ModelOptions)
    prompting: PromptsGroup = field(default_factory=PromptOptions)
    selecting: SelectionGroup = field(default_factory=SelectionOptions)
    measuring: MeasureGroup = field(default_factory=MeasureOptions)
    drifting: DriftGroup = field(default_factory=DriftOptions)
    benchmarking: CapabilityGroup = field(default_factory=CapabilityOptions)
    writing: EngineGroup = field(default_factory=EngineOptions)
    judging: JudgeGroup = field(default_factory=JudgeOptions)
    transferring: TransferGroup = field(default_factory=TransferOptions)
    reporting: ReportGroup = field(default_factory=ReportOptions)

    @property
    def given(self) -> dict[str, Any]:
        """The options that were typed."""
        found: dict[str, Any] = {}
        for each in vars(self).values():
            if isinstance(each, BaseModel):
                found |= {name: getattr(each, name) for name in each.model_fields_set}
        return found

    def make(self, model: str | None) -> RunConfig:
        """The configuration: preset, then file, then what was typed.

        Raises:
            ConfigError: a value or the file cannot be used.
        """
        return make_config(
            self.preset,
            self.config,
            **self.given,
            **({"model": model} if model is not None else {}),
        )


Run = Annotated[Settings, Parameter(name="*")]
MODEL_DEFAULTS, RUN_DEFAULTS = ModelOptions(), Settings()


def default_folder(model: str) -> Path:
    """Where a run of a model goes that was given no folder."""
    return Path("runs") / (re.sub(r"[^\w.-]+", "-", model).strip("-.") or "model")
