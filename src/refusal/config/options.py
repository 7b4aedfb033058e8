"""The options of a run in the groups that help shows, each with its meaning and limits.

A group is a table in TOML too (`tables.py`). Those of engines and judges are files of their own.
"""

from math import isfinite
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from refusal.core.day import iso_date

Count = Annotated[int, Field(ge=1)]
How = Literal["auto", "completions", "metric", "none"]
STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _how(value: object) -> object:
    """How prompts are filtered; older files say yes or no."""
    return {True: "metric", False: "none"}[value] if isinstance(value, bool) else value


def one_or_more(value: object) -> object:
    """A name alone, as older files have it, is a list of one."""
    return (value,) if isinstance(value, str) else value


def once_each(names: tuple[str, ...]) -> tuple[str, ...]:
    """Some names, each once."""
    if not names or len(set(names)) < len(names):
        raise ValueError("it should be some names, each once")
    return names


def once_each_number(numbers: tuple[float, ...]) -> tuple[float, ...]:
    """Some finite numbers, each once."""
    if not numbers or len(set(numbers)) < len(numbers) or not all(map(isfinite, numbers)):
        raise ValueError("it should be some finite numbers, each once")
    return numbers


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
    turns: Annotated[int, Field(ge=0)] = 0
    """Harmless exchanges, built in, of a user and the assistant that stand before every prompt."""
    prefill: Annotated[str, Field(min_length=1)] | None = None
    """How every answer begins; what is judged is this and what the model writes after it."""
    date: Annotated[str, BeforeValidator(iso_date)] | None = None
    """YYYY-MM-DD: the date of templates that write one into prompts; by default that of the run's
    first day.
    """
    thinking: Literal["off", "closed", "on"] | None = None
    """Of a model that thinks before it answers: off by the template's switch; closed: an empty
    thought stands before the answer; on. By default off where there is a switch, else closed.
    """
    thinking_tokens: Count = 1024
    """Longest thought with thinking on; max-new-tokens then counts the answer's."""
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
    filter: Annotated[How, BeforeValidator(_how)] = "auto"
    """Only harmful prompts that the model refuses count and harmless ones that it answers: by the
    sign of the refusal metric, by judged completions of the whole answer, or none (all of them
    count; also --no-filter). auto: the metric, and completions where it fits these badly.
    """
    filter_tokens: Count | None = None
    """Length of completions that prompts are filtered by; by default max-new-tokens, from 128 to
    256.
    """


class SelectionOptions(BaseModel):
    """How the direction is found and chosen."""

    model_config = STRICT

    method: Annotated[tuple[str, ...], BeforeValidator(one_or_more), AfterValidator(once_each)] = (
        "dim",
    )
    """How the direction is found: dim is the difference in means with the paper's rule. Further
    ones are compared with the first, which the rest of the run is about.
    """
    centroids: Count = 4
    """With the method kmeans: clusters of harmful prompts at each place."""
    rank: Count = 1
    """With the method rdo: vectors of a cone, all of which must do; 1 finds one direction."""
    rdo_epochs: Count = 1
    """With the method rdo: how often it goes through the training prompts."""
    rdo_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """With the method rdo: stop after so many seconds of steps, whatever is left of the epochs."""
    pseudo_harmful: str = "orbench-hard"
    """With the method false-refusal: prompts that only look harmful, of which those count that the
    model refuses: orbench-hard (its file in --data-dir), or a file of your own.
    """
    refusal_direction: str | None = None
    """With the method false-refusal: the refusal direction that stays, as the folder of a run or a
    direction.safetensors; by default the difference in means at the place of each candidate.
    """
    lambdas: Annotated[tuple[float, ...], AfterValidator(once_each_number)] = (1.0,)
    """With the method false-refusal: the share of the refusal direction that is taken out of a
    candidate; of several the one that does best on validation prompts.
    """
    keep_refusal: Annotated[float, Field(ge=0, le=1)] = 0.95
    """With the method false-refusal: the share of the refusals of harmful validation prompts that
    must be left.
    """
    tried: Count = 4
    """With the method false-refusal: how many candidates complete the validation prompts."""
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
    selection_risk: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    """Probability that may be taken of missing the candidate that the rule would choose: others are
    then dropped by tests on their first prompts. 0: only where it is certain.
    """
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
    """What is measured of the direction on prompts."""

    model_config = STRICT

    minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Measure this machine and take the largest sizes with which the whole run should end in so
    many minutes, up to those of the preset; sizes that are given stay.
    """
    max_new_tokens: Count = 512
    """Length of the completions."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """Draw completions at this temperature, by the seed; 0: the likeliest token each time."""
    samples: Count = 1
    """Completions of each prompt that is measured, at a temperature above 0."""
    controls: Annotated[int, Field(ge=0)] = 8
    """Random directions to do the same with, beside shuffled labels and matched pairs; 0 leaves all
    controls out.
    """
    interventions: tuple[str, ...] = ()
    """Further interventions to measure beside ablation, subtraction and addition, with numbers
    behind the name where it takes some, such as a strength: ablation@0.5.
    """
    condition_on: str | None = None
    """Folder of a monitor (refusal monitor fit): an intervention called conditional-ablation, say,
    acts only on prompts at which it fires, unless-ablation on the others only.
    """
    n_control: Count = 32
    """Prompts of a set, or texts of a file, that each control is run on."""
    over_refusal: tuple[Literal["xstest", "orbench-hard"], ...] = ()
    """Also complete these sets of harmless prompts that look harmful (and XSTest's unsafe half)."""
    n_over_refusal: Count = 100
    """Prompts of each half of those sets."""
    seeds: Count = 1
    """Repeat split, extraction and selection with so many seeds in all, and report how far they
    agree.
    """


class TransferOptions(BaseModel):
    """In which contexts directions are found, and used: each in every one."""

    model_config = STRICT

    transfer_systems: tuple[str, ...] = ()
    """System prompts, each a context: none, default, cautious, permissive (built in), or files with
    the text (FILE.txt).
    """
    transfer_turns: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Numbers of harmless exchanges before a prompt: every system prompt has the first, the first
    system prompt also each of the others.
    """
    transfer_languages: tuple[str, ...] = ()
    """Languages of harmful prompts (de es zh), from harmful_val_de.json and MultiJail.csv in
    --data-dir.
    """


class DriftOptions(BaseModel):
    """How much else the ablation changes: drift on the model's own answers and on given texts."""

    model_config = STRICT

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


class CapabilityOptions(BaseModel):
    """Benchmarks of ability, with and without the direction."""

    model_config = STRICT

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


class ReportOptions(BaseModel):
    """What the report holds beside the numbers."""

    model_config = STRICT

    figures: tuple[Literal["svg", "png", "pdf", "none"], ...] = ("svg",)
    """Formats of the report's figures as files: svg, png, pdf (these two by the extra ``figures``),
    or none.
    """
    price_per_device_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Money for a device for an hour; the manifest and the report then say what each stage has
    cost.
    """
