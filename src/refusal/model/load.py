"""Load a chat model, and the object that the rest of the package works on.

A model is named by a hub id, a local folder, a ``.gguf`` file, or ``embedded`` (the model from the
package registry).
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, TypedDict, Unpack

from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.utils.hub import cached_file

from refusal.config.options import ModelOptions
from refusal.core.day import day_of
from refusal.core.errors import ModelLoadError, OutOfMemoryError
from refusal.core.progress import task
from refusal.model import embedded
from refusal.model.adapter import check_mergeable, merged
from refusal.model.batch_size import is_out_of_memory
from refusal.model.chat_model import ChatModel
from refusal.model.chat_template import find_format
from refusal.model.checkpoint_check import (
    MEND,
    adapter_message,
    conversion_faults,
    hub_options,
    load_whole,
)
from refusal.model.contexts import check_special_ids
from refusal.model.fast_linear import speed_up
from refusal.model.gguf import converted_folder
from refusal.model.harmless_turns import around_of
from refusal.model.loading_bars import bars_as_tasks
from refusal.model.placement import find_device, find_dtype, multiply_as_asked, place
from refusal.model.sites import find_sites, language_model
from refusal.model.thinking_form import find_thinking

# What transformers raises for files that are missing, damaged or of an unknown kind.
LOAD_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    SafetensorError,
    UnpicklingError,
    RecursionError,
)


class LoadOptions(TypedDict, total=False):
    """The keyword arguments of ``load``; what they mean and default to is in ``ModelOptions``."""

    revision: str | None
    dtype: str
    device: str
    device_map: str | None
    max_memory: Sequence[str]
    quantize: Literal["4bit", "8bit"] | None
    tp_plan: Literal["auto"] | None
    system: str | None
    turns: int
    prefill: str | None
    date: str | None
    thinking: Literal["off", "closed", "on"] | None
    thinking_tokens: int
    blocks: str | None
    writers: Sequence[str] | None
    batch_size: int | None


def load(name: str = "embedded", **options: Unpack[LoadOptions]) -> ChatModel:
    """Load a chat model.

    Args:
        name: hub id, folder, ``.gguf`` file, or ``embedded``.
        revision: branch, tag or commit of a hub model.
        dtype: ``bfloat16``, ``float32``, ``float16``, or ``auto``: bfloat16 where the device
            multiplies in it.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        device_map: as in transformers ("auto" spreads a model over devices); overrides ``device``.
        max_memory: with ``device_map``, how much each device may hold: ``("0=20GiB",
            "cpu=60GiB")``; what fits nowhere stays on the disk.
        quantize: load the weights of linear layers in 4 (NF4) or 8 bits, by bitsandbytes.
        tp_plan: ``auto`` splits every weight over the processes that torchrun has started, as in
            transformers.
        system: a system prompt; by default what the template does by itself.
        turns: harmless exchanges before every prompt; prefill: how the answer begins
            (docs/conversations.md).
        date: ``YYYY-MM-DD``, what templates that ask for the date write; by default today.
        thinking: of a model that thinks before it answers: ``off`` by the template's switch,
            ``closed`` by an empty thought before the answer, ``on``; by default off where there is
            a switch, else closed (docs/reasoning.md).
        thinking_tokens: longest thought under ``on``, beside the answer's limit.
        blocks: path of the decoder blocks, where discovery fails (see ``find_sites``).
        writers: names of the writing children of a block, where discovery fails.
        batch_size: most rows at once when generating; by default chosen from free memory.

    Raises:
        ModelLoadError: not found, no network, or not readable.
        ChatTemplateError: no chat template, or it rejects the system prompt.
        UnsupportedModelError: blocks or writers not found.
        OutOfMemoryError: the weights do not fit.
        ConfigError: no such date, unknown dtype or device, ``thinking`` that the model lacks,
            ``tp_plan`` without a launcher, or ``quantize`` without bitsandbytes.
        TypeError: no such option.
    """
    return _load(name, options, None)


def load_adapted(base: str, adapter: str, **options: Unpack[LoadOptions]) -> ChatModel:
    """Load a chat model with a LoRA adapter merged into its weights, as ``merge_and_unload`` of
    PEFT does; it is called like the adapter.

    Args:
        base: what the adapter is for, as ``load`` takes it.
        adapter: its folder. All other options are those of ``load``.

    Raises:
        ModelLoadError: the adapter cannot be read, or does not fit the base.
        ConfigError: the base is quantised or spread over devices, or PEFT is not installed.
        refusal.Error: what ``load`` raises.
    """
    return _load(base, options, adapter)


def _load(name: str, options: LoadOptions, adapter: str | None) -> ChatModel:
    if unknown := options.keys() - LoadOptions.__annotations__.keys():
        raise TypeError(f"load() has no option {min(unknown)!r}")
    given = ModelOptions.model_construct(**options)
    day = day_of(given.date)
    where = find_device(given.device)
    precision = find_dtype(given.dtype, where)
    source = resolve(name)
    hub = hub_options(given.revision)
    if adapter is not None:
        check_mergeable(adapter, given)
    placement = place(
        where, precision, given.device_map, given.max_memory, given.quantize, given.tp_plan
    )
    with loading(name):
        tokenizer = AutoTokenizer.from_pretrained(source, **hub)
        if not tokenizer.chat_template:
            tokenizer.chat_template = _processor_template(source, hub)
        # A base model, or a wrong --thinking, is refused before the weights are read.
        around = around_of(given.turns, given.prefill)
        find_format(tokenizer, given.system, day, around=around)
        find_thinking(tokenizer, given.thinking, given.thinking_tokens, given.system, day)
        config = AutoConfig.from_pretrained(source, **hub)
        check_special_ids(config, name)
        hf = load_whole(
            name, source, auto_class(config), config, hub, {"dtype": precision, **placement}
        )
        if adapter is not None:
            hf = merged(hf, adapter)
        hf = language_model(hf)
        if not placement:
            hf.to(where)  # type: ignore[arg-type]
            speed_up(hf)
        multiply_as_asked(hf, precision)
    sites = find_sites(hf, given.blocks, given.writers or None)
    model = ChatModel(
        hf,
        tokenizer,
        adapter or name,
        system=given.system,
        sites=sites,
        batch_size=given.batch_size,
        day=day,
        thinking=given.thinking,
        thinking_tokens=given.thinking_tokens,
        turns=given.turns,
        prefill=given.prefill,
    )
    model.revision = given.revision
    return model


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Report what transformers loads inside the block as a task, and its errors as this package's.

    Raises:
        ModelLoadError: not found, no network, or not readable.
        OutOfMemoryError: the weights do not fit.
    """
    try:
        with bars_as_tasks(), task("load the model", total=0, unit=""):
            yield
    except (*LOAD_ERRORS, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"The weights of {name!r} do not fit into memory. Use a smaller model, --dtype "
                "bfloat16, --quantize 4bit, another --device, or --device-map auto; where `ulimit "
                "-v` limits the address space, raise it."
            ) from error
        raise ModelLoadError(load_message(name, error)) from error


def resolve(name: str) -> str:
    """What transformers should load: a folder, or a hub id as it is.

    Raises:
        ModelLoadError: neither, or not readable.
        StorageError: no room to unpack it.
    """
    if name == embedded.NAME:
        return str(embedded.folder())
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "adapter_config.json").is_file():
            raise ModelLoadError(adapter_message(name))
        if not (path / "config.json").is_file():
            raise ModelLoadError(
                f"The folder {name} holds no config.json. Give a folder in transformers' format."
            )
        return str(path)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelLoadError(f"There is no file {name}. Check the path, or use `embedded`.")
        return str(converted_folder(path))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ModelLoadError(
            f"{name!r} is neither a folder, a .gguf file nor a hub id (owner/name). Check it, or "
            "use `embedded`."
        )
    return name


def local_folder(name: str, revision: str | None = None) -> Path:
    """The folder of a model's files; a hub model's are fetched if they are not in transformers'
    cache.

    Raises:
        ModelLoadError: not found, no network, or not readable.
    """
    source = resolve(name)
    if Path(source).is_dir():
        return Path(source)
    try:
        patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except LOAD_ERRORS as error:
        raise ModelLoadError(load_message(name, error)) from error


def auto_class(config: PreTrainedConfig) -> Any:
    """What loads a checkpoint as the class that wrote it, by its ``architectures``.

    Some configs (Qwen3.5, Llama-4) belong to two classes, the whole vision-language model and its
    text part alone. Where ``architectures`` names neither, the whole is taken: it is used through
    its language model.
    """
    autos = (
        (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
        (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    )
    there = [(auto, mapping) for auto, mapping in autos if type(config) in mapping]
    known = [(auto, _classes(mapping[type(config)])) for auto, mapping in there]
    wrote = set(getattr(config, "architectures", None) or ())
    named = (auto for auto, classes in known if wrote & classes)
    return next(named, known[0][0] if known else AutoModelForCausalLM)


def _classes(found: Any) -> set[str]:
    """Names of the classes in a mapping's entry, which holds one or several."""
    return {each.__name__ for each in (found if isinstance(found, (list, tuple)) else (found,))}


def _processor_template(source: str, options: dict[str, Any]) -> str | None:
    """The chat template that older vision-language checkpoints keep with their image processor, if
    there is one.
    """
    file = cached_file(
        source,
        "chat_template.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **options,
    )
    if file is None:
        return None
    template = json.loads(Path(file).read_text(encoding="utf-8")).get("chat_template")
    return template if isinstance(template, str) else None


def load_message(name: str, error: BaseException) -> str:
    """The first line of what transformers says, and what to do about it."""
    if "trust_remote_code" in str(error):
        return (
            f"The model {name!r} comes with code of its own (auto_map in its config), which is "
            "not run. Give a model whose architecture transformers has."
        )
    faults = conversion_faults(error)
    if faults:
        return f"The checkpoint of {name!r} does not fit its config.json: {faults}. {MEND}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if name == embedded.NAME or Path(name).expanduser().exists():
        mend = (
            "Give a complete folder in transformers' format or another .gguf file, or use "
            "`embedded`."
        )
    else:
        mend = (
            "Check the id and the network, give a local folder or a .gguf file, or use `embedded`."
        )
    return f"The model {name!r} could not be loaded: {lines[0].rstrip('.: ')}. {mend}"
