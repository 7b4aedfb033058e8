"""Turn a ``.gguf`` file into a folder of bfloat16 safetensors in the user's cache, once.

transformers can read GGUF, but unpacking takes a minute each time; the converted folder loads in seconds.
"""

import logging
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from refusal.errors import ModelLoadError, StorageError
from refusal.progress import task
from refusal.storage import cache_root, file_sha256

log = logging.getLogger(__name__)


def converted_folder(file: Path, sha256: str | None = None) -> Path:
    """The converted folder of ``file``, made if it is not there yet.

    Raises:
        ModelLoadError: transformers cannot read the file.
        StorageError: no room in the cache.
    """
    folder = cache_root() / "models" / (sha256 or file_sha256(file))[:16]
    if not (folder / "config.json").is_file():
        convert(file, folder)
    return folder


def convert(file: Path, folder: Path) -> None:
    """Unpack ``file`` into ``folder``: weights in bfloat16, tokenizer with its chat template, configs."""
    log.info("Converting %s to bfloat16 safetensors, once.", file.name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
    except OSError as error:
        raise StorageError(
            f"{folder.parent} is not writable ({error}). Set REFUSAL_CACHE to another folder."
        ) from error
    try:
        with task("convert the GGUF file", total=3, unit="steps") as advance:
            where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
            AutoTokenizer.from_pretrained(**where).save_pretrained(temporary)
            advance(1)
            model = AutoModelForCausalLM.from_pretrained(
                **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
            )
            advance(1)
            model.save_pretrained(temporary)
            advance(1)
        temporary.replace(folder)
    except (ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelLoadError(
            f"transformers cannot read {file.name} ({error}). Give the model as a folder of safetensors instead."
        ) from error
    except OSError as error:
        if (folder / "config.json").is_file():  # another process converted it meanwhile
            return
        raise StorageError(
            f"{folder} could not be written ({error}). Free some space or set REFUSAL_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
