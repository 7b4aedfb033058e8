"""A LoRA adapter merged into the model that it is for, which is then a model like any other.

Merged before anything copies or times the weights: PEFT writes past torch's version counter.
"""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedModel

from refusal.config.options import ModelOptions
from refusal.core.errors import ConfigError, ModelLoadError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter(name: str) -> bool:
    """Whether a name is that of an adapter's folder."""
    try:
        return (Path(name).expanduser() / CONFIG).is_file()
    except (OSError, ValueError):  # a name that is too long, say
        return False


def base_of(adapter: str) -> str | None:
    """What the adapter says that it is for; ``None`` where it says nothing.

    Raises:
        ModelLoadError: its config cannot be read, or its weights are missing.
    """
    folder = Path(adapter).expanduser()
    try:
        config: Any = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(
            f"{folder / CONFIG} cannot be read ({error}). Fetch the adapter again."
        ) from error
    if not (folder / WEIGHTS).is_file():
        raise ModelLoadError(f"{folder} holds no {WEIGHTS}. Fetch the adapter again.")
    name = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return name if isinstance(name, str) else None


def check_mergeable(adapter: str, options: ModelOptions) -> None:
    """Make sure that an adapter can be merged into a base that is loaded so.

    Raises:
        ConfigError: the base is quantised or spread over devices, or PEFT is not installed.
        ModelLoadError: the adapter lacks a file.
    """
    for name in ("quantize", "device_map", "tp_plan"):
        if getattr(options, name) is not None:
            raise ConfigError(
                f"The adapter {adapter!r} is merged into whole weights, which --"
                f"{name.replace('_', '-')} does not leave. Leave it out, or merge the adapter, "
                "save that, and give the folder."
            )
    if find_spec("peft") is None:
        raise ConfigError(
            f"The adapter {adapter!r} is merged by PEFT, which is not installed. Install it: pip "
            "install 'refusal[lora]'; or give the merged model."
        )
    base_of(adapter)


def merged(hf: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model with an adapter merged into its weights.

    Raises:
        ModelLoadError: PEFT cannot load it, or only a part of it has a place in the model.
    """
    from peft import PeftModel, get_peft_model_state_dict

    folder = Path(adapter).expanduser()
    try:
        with safe_open(str(folder / WEIGHTS), framework="pt") as file:
            stored = set(file.keys())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            wrapped = PeftModel.from_pretrained(hf, str(folder))
            missing = [str(w.message) for w in said if "missing adapter keys" in str(w.message)]
            loaded = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
            unused = sorted(key for key in stored - loaded.keys() if "lora_" in key)
            if missing or unused:
                raise _unfit(adapter, missing[0] if missing else f"{unused[0]} has no place in it")
            found: PreTrainedModel = wrapped.merge_and_unload().eval()
    except Exception as error:  # PEFT may raise anything
        if isinstance(error, ModelLoadError):
            raise
        raise _unfit(adapter, (str(error).splitlines() or [type(error).__name__])[0]) from error
    return found


def _unfit(adapter: str, why: str) -> ModelLoadError:
    return ModelLoadError(
        f"The adapter {adapter!r} does not fit its base ({why[:300].rstrip('. ')}). Give the base "
        "that it was made for (base_model_name_or_path in adapter_config.json)."
    )
