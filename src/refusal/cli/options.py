"""The options that several commands take, in the groups that ``--help`` shows."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from refusal.config.engines import EngineOptions
from refusal.config.judges import JudgeOptions
from refusal.config.run_config import (
    MeasureOptions,
    ModelOptions,
    PromptOptions,
    RunConfig,
    SelectionOptions,
    make_config,
)
from refusal.directions import METHODS
from refusal.interventions import INTERVENTIONS

# What is registered is named here, so that a new method or intervention shows in --help by itself.
for section, name, table in (
    (SelectionOptions, "method", METHODS),
    (MeasureOptions, "interventions", INTERVENTIONS),
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
ModelGroup = Annotated[ModelOptions, Parameter(name="*", group=Group("Model", sort_key=1))]
PromptsGroup = Annotated[PromptOptions, Parameter(name="*", group=Group("Prompts", sort_key=2))]
SelectionGroup = Annotated[
    SelectionOptions, Parameter(name="*", group=Group("Selection", sort_key=3))
]
MeasureGroup = Annotated[
    MeasureOptions, Parameter(name="*", group=Group("Measurements", sort_key=4))
]
EngineGroup = Annotated[EngineOptions, Parameter(name="*", group=Group("Engine", sort_key=5))]
JudgeGroup = Annotated[JudgeOptions, Parameter(name="*", group=Group("Judges", sort_key=6))]


@dataclass(frozen=True)
class Settings:
    """All that makes a run's configuration, but for the model's name."""

    preset: Annotated[
        str | None,
        Parameter(help="quick (minutes on a laptop) or paper (the paper's sizes, the default)."),
    ] = None
    config: Annotated[
        Path | None, Parameter(help="TOML file with options, such as a run folder's run.toml.")
    ] = None
    loading: ModelGroup = field(default_factory=ModelOptions)
    prompting: PromptsGroup = field(default_factory=PromptOptions)
    selecting: SelectionGroup = field(default_factory=SelectionOptions)
    measuring: MeasureGroup = field(default_factory=MeasureOptions)
    writing: EngineGroup = field(default_factory=EngineOptions)
    judging: JudgeGroup = field(default_factory=JudgeOptions)

    @property
    def given(self) -> dict[str, Any]:
        """The options that were typed."""
        groups = (
            self.loading,
            self.prompting,
            self.selecting,
            self.measuring,
            self.writing,
            self.judging,
        )
        return {name: getattr(group, name) for group in groups for name in group.model_fields_set}

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
