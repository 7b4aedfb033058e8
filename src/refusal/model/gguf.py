"""Turn a ``.gguf`` file into a folder of bfloat16 safetensors in the user's cache, once.

transformers can read GGUF, but unpacking takes a minute each time; the converted folder loads in
seconds.
"""

import logging
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.gguf.utils import is_gguf_arch_supported
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from refusal.core.errors import ModelLoadError, StorageError
from refusal.core.progress import task
from refusal.core.storage import cache_root, file_sha256
from refusal.model.checkpoint_check import check_loaded, check_values, hub_options
from refusal.model.gguf_rope import FACTORS, carry_factors, check_scaling
from refusal.model.loading_bars import bars_as_tasks

log = logging.getLogger(__name__)

MAGIC = b"GGUF"
# ends the name of a converted folder; those of versions that checked nothing are left alone
CHECKED = "checked"


def converted_folder(file: Path) -> Path:
    """The converted folder of ``file``, made if it is not there yet.

    Raises:
        ModelLoadError: no GGUF file, or one that transformers cannot read.
        StorageError: no room in the cache.
    """
    try:
        with file.open("rb") as start:
            magic = start.read(len(MAGIC))
        digest = file_sha256(file)
    except OSError as error:
        raise ModelLoadError(
            f"{file} cannot be read ({error.strerror}). Check its permissions."
        ) from error
    if magic != MAGIC:
        raise ModelLoadError(
            f"{file} is not a GGUF file: it starts with {magic!r}. Give a .gguf file or a folder."
        )
    folder = cache_root() / "models" / f"{digest[:16]}-{CHECKED}"
    if not is_converted(folder):
        convert(file, folder)
    return folder


def is_converted(folder: Path) -> bool:
    """Whether ``convert`` has finished ``folder``: it appears with everything in it."""
    return (folder / "config.json").is_file()


def convert(file: Path, folder: Path) -> None:
    """Unpack ``file`` into ``folder``: weights in bfloat16, tokenizer with its chat template,
    configs.

    The folder is filled under a temporary name and renamed, so an interruption leaves nothing
    half-written, and of two processes that convert the same file the first one to finish wins.
    """
    log.info("Converting %s to bfloat16 safetensors, once.", file.name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as temporary,
            bars_as_tasks(),
        ):
            with task(f"convert {file.name}", total=0, unit=""):
                tokenizer, model = _read(file)
                filled = Path(temporary) / "model"
                tokenizer.save_pretrained(filled)
                model.save_pretrained(filled)
            _move(filled, folder)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{folder} could not be written ({error}). Free some space or set REFUSAL_CACHE to "
            "another folder."
        ) from error


def _read(file: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": file.name,
        **hub_options(),
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        auto: Any = AutoModelForCausalLM  # typed as if it never gave the loading info
        model, info = auto.from_pretrained(
            **where,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        reader = GGUFReader(file)
        check_scaling(file.name, reader, model)
        info["unexpected_keys"] |= _unread(reader, model)
    # What a damaged file makes the parsers raise depends on where it is damaged.
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        ImportError,
        RuntimeError,
        struct.error,
    ) as error:
        raise ModelLoadError(
            f"transformers cannot read {file.name} ({error or type(error).__name__}). "
            "Give a complete file, or the model as a folder of safetensors."
        ) from error
    check_loaded(file.name, model, info)
    check_values(file.name, model)
    return tokenizer, model


def _unread(reader: GGUFReader, model: PreTrainedModel) -> set[str]:
    """Tensors of the file that transformers passes over without a word: of further layers, scales,
    positions.
    """
    field = reader.get_field("general.architecture")
    kind = field.contents() if field is not None else ""
    if is_gguf_arch_supported(kind):  # these are read another way, which reports them itself
        return set()
    processors: Any = TENSOR_PROCESSORS
    processor = processors.get(kind, TensorProcessor)(config=model.config.to_dict())
    known: dict[str, str] = get_gguf_hf_weights_map(model, processor)
    carried = {FACTORS} if carry_factors(reader, model) else set()
    names = {tensor.name for tensor in reader.tensors} - carried
    return {name for name in names if name not in known and "_exps" not in name}


def _move(filled: Path, folder: Path) -> None:
    """Give the finished folder its name, unless another process was first."""
    if folder.exists() and not is_converted(folder):
        shutil.rmtree(folder)
    try:
        filled.replace(folder)
    except OSError:
        if not is_converted(folder):
            raise
