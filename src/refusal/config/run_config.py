"""The configuration of a run, its presets, and its TOML form."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from refusal.config.engines import EngineOptions
from refusal.config.judges import JudgeOptions
from refusal.config.rule import Rule
from refusal.core.day import iso_date
from refusal.core.errors import ConfigError
from refusal.core.secrecy import shown_arguments
from refusal.core.text_files import read_user_text, user_path

Count = Annotated[int, Field(ge=1)]
STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelOptions(BaseModel):
    """How a model is loaded."""

    model_config = STRICT

    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    """Precision of weights and activations: bfloat16, float32, float16; auto: bfloat16 where the
    device has it.
    """
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    device_map: str | None = None
    """As in transformers: `auto` spreads a model over several devices."""
    max_memory: tuple[str, ...] = ()
    """With a device map, what each device may hold: 0=20GiB cpu=60GiB; what fits nowhere stays on
    the disk.
    """
    quantize: Literal["4bit", "8bit"] | None = None
    """Load the weights of linear layers in 4 or 8 bits, by bitsandbytes."""
    tp_plan: Literal["auto"] | None = None
    """`auto`: split every weight over the processes of a launcher (tensor parallel), as in
    transformers.
    """
    system: str | None = None
    """A system prompt; by default what the template does by itself."""
    date: Annotated[str, BeforeValidator(iso_date)] | None = None
    """YYYY-MM-DD: the date of templates that write one into prompts; by default that of the run's
    first day.
    """
    blocks: str | None = None
    """Path of the decoder blocks, where they are not found ("model.layers")."""
    writers: tuple[str, ...] = ()
    """Names of the writing children of a block, where they are not found (self_attn mlp)."""
    batch_size: Count | None = None
    """Most prompts at once when generating; by default chosen from free memory."""


class PromptOptions(BaseModel):
    """Which prompts, and how many."""

    model_config = STRICT

    prompts: tuple[str, ...] = ("builtin",)
    """builtin, paper, or files: harmful=bad.txt harmless=good.txt all.csv"""
    data_dir: str | None = None
    """Folder of already downloaded source files (for `paper`)."""
    column: str | None = None
    """Text column of your own csv or json files."""
    dedup: Literal["near", "exact"] = "near"
    """Drop near-duplicates of later splits, or only exact ones as the published splits do."""
    seed: int = 42
    """Shuffles the prompt pools."""
    n_train: Count = 128
    """Training prompts per class that must pass the filter."""
    n_val: Count = 32
    """Validation prompts per class that must pass the filter."""
    n_test: Count = 100
    """Test prompts per class."""
    filter: bool = True
    """Keep only harmful prompts that the model refuses and harmless ones that it does not, by the
    refusal metric.
    """


class SelectionOptions(BaseModel):
    """How the direction is found and chosen."""

    model_config = STRICT

    method: str = "dim"
    """How the direction is found: dim is the difference in means with the paper's rule."""
    refusal_tokens: tuple[str, ...] = ()
    """Refusal tokens as texts or ids; by default a preset or chosen from the model's
    completions.
    """
    induce_threshold: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """A candidate must induce refusal at least this much."""
    kl_threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """A candidate's ablation may change harmless behaviour at most this much."""
    prune_layers: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the last layers that is not eligible."""
    layer_step: Count = 1
    """Score every n-th layer only."""
    full_map: bool = False
    """Give every candidate of every layer all three scores (for plots), not only what the decision
    needs.
    """
    resamples: Annotated[int, Field(ge=0)] = 1000
    """Resamples of the validation prompts that show how firm the choice is; 0 leaves them out."""
    strict: bool = False
    """Stop with exit code 1 when no candidate qualifies."""


class MeasureOptions(BaseModel):
    """What is measured of the direction."""

    model_config = STRICT

    max_new_tokens: Count = 512
    """Length of the completions."""
    controls: Annotated[int, Field(ge=0)] = 8
    """Random directions to do the same with, beside shuffled labels and matched pairs; 0 leaves all
    controls out.
    """
    interventions: tuple[str, ...] = ()
    """Further interventions to measure beside ablation, subtraction and addition."""
    n_control: Count = 32
    """Prompts of a set, or texts of a file, that each control is run on."""
    over_refusal: tuple[Literal["xstest", "orbench-hard"], ...] = ()
    """Also complete these sets of harmless prompts that look harmful (and XSTest's unsafe half)."""
    n_over_refusal: Count = 100
    """Prompts of each half of those sets."""
    drift_tokens: Annotated[int, Field(ge=0)] = 32
    """Tokens of the model's own answers over which KL is taken, beside the first; 0 measures no
    drift at all.
    """
    texts: tuple[str, ...] = ()
    """Files for cross-entropy: running text (.txt, .jsonl with text) or pairs (.jsonl with
    instruction and output).
    """
    n_texts: Count = 64
    """Texts of each kind."""
    text_tokens: Annotated[int, Field(ge=2)] = 256
    """Longest text, in tokens."""
    tasks: tuple[str, ...] = ()
    """Benchmarks of lm-eval: arc_challenge mmlu:5 gsm8k_cot@50 (MMLU with five worked examples, 50
    items of GSM8K).
    """
    n_items: Count | None = None
    """Items of each benchmark, a seeded random choice; by default all."""
    task_chat: bool = False
    """Put the items into the model's chat format (lm-eval's default is not to)."""
    task_tokens: Count | None = None
    """Longest written answer to a benchmark's item; by default what the task says, else 256."""
    task_exact: bool = False
    """Run lm-eval's own model class bit for bit, slower, instead of reading once what items begin
    with in common.
    """
    judges: tuple[str, ...] = ()
    """Further judges: substring, llama-guard-3, harmbench, wildguard, strongreject,
    endpoint-refusal=MODEL, …
    """
    figures: tuple[Literal["svg", "png", "pdf", "none"], ...] = ("svg",)
    """Formats of the report's figures as files: svg, png, pdf (these two by the extra ``figures``),
    or none.
    """
    price_per_device_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Money for a device for an hour; the manifest and the report then say what each stage has
    cost.
    """
    seeds: Count = 1
    """Repeat split, extraction and selection with so many seeds in all, and report how far they
    agree.
    """


class RunOptions(
    JudgeOptions, EngineOptions, MeasureOptions, SelectionOptions, PromptOptions, ModelOptions
):
    """The options of a run, all but the model. The defaults are the paper's sizes on the built-in
    prompts.
    """

    @property
    def rule(self) -> Rule:
        """The selection rule's thresholds."""
        return Rule(self.induce_threshold, self.kl_threshold, self.prune_layers)


class RunConfig(RunOptions):
    """Everything that decides the result of a run."""

    model: str = "embedded"
    """Hub id, folder, .gguf file, or `embedded`."""


SECTIONS: dict[str, type[BaseModel]] = {
    "Model": ModelOptions,
    "Prompts": PromptOptions,
    "Selection": SelectionOptions,
    "Measurements": MeasureOptions,
    "Engine": EngineOptions,
    "Judges": JudgeOptions,
}

PRESETS: dict[str, dict[str, Any]] = {
    # Arditi et al. 2024: 128 / 32 / 100 prompts a class, 512 new tokens, every position and layer.
    "paper": {},
    # A first look in minutes on a laptop's processor: fewer prompts, every second layer, short
    # completions.
    "quick": {
        "n_train": 32,
        "n_val": 12,
        "n_test": 32,
        "max_new_tokens": 32,
        "layer_step": 2,
        "n_control": 4,
        "drift_tokens": 16,
        "n_texts": 8,
        "text_tokens": 128,
        "n_items": 50,
    },
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
        **(_read_toml(Path(file)) if file is not None else {}),
    }
    try:
        return RunConfig(**{**values, **given})
    except ValidationError as error:
        raise wrong_value(error) from error


def added(config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run with more measured: lists grow, everything else is replaced."""
    grown = {
        name: (
            *getattr(config, name),
            *(item for item in given[name] if item not in getattr(config, name)),
        )
        for name in ("over_refusal", "texts", "tasks", "judges")
        if name in given
    }
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


def _read_toml(path: Path) -> dict[str, Any]:
    text = read_user_text(user_path(path, ConfigError), "configuration", ConfigError)
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError(
            f"{path} cannot be read as TOML (nested too deeply). Check the file."
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} cannot be read as TOML ({error}). Check the path and the file."
        ) from error
