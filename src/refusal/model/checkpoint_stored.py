"""How the tensors of a checkpoint are stored, against what its config says: plain numbers, or a
quantiser's.

transformers casts whatever it finds to the dtype that is asked for, 8-bit integers without their
scales too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from refusal.core.errors import ModelLoadError

FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PLAIN = frozenset({"BF16", "F16", "F32", "F64", "bfloat16", "float16", "float32", "float64"})
COUNTERS = frozenset(
    {"I64", "BOOL", "int64", "bool"}
)  # positions and masks; no quantiser packs weights in these
# Those that always store something else than plain numbers. Others may quantise while loading, or
# leave all as it is.
PACKED = frozenset(
    {"awq", "bitsandbytes", "eetq", "fbgemm_fp8", "fp8", "gptq", "mxfp4", "mxfp8", "nvfp4"}
)


def claims(config: PreTrainedConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a config and its parts say of quantisation, each under its key."""
    whole = config.to_dict()
    for part in (whole, *(value for value in whole.values() if isinstance(value, dict))):
        for key in ("quantization_config", "compression_config", "quantization"):
            if isinstance(stored := part.get(key), dict) and stored:
                yield key, stored


def stored_dtypes(source: str, options: Mapping[str, Any]) -> dict[str, str]:
    """The dtype of each stored tensor by name, in the words of its file; of the files that
    transformers takes.

    A hub model's are looked for where loading has left them, not fetched.
    """
    quiet = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    hub = {"local_files_only": True} | {
        name: value for name, value in options.items() if name == "revision"
    }
    for name in FILES:
        found = cached_file(source, name, **quiet, **hub)
        if found is None:
            continue
        files = (
            get_checkpoint_shard_files(source, found, **hub)[0]
            if name.endswith(".index.json")
            else [found]
        )
        return {key: dtype for file in files for key, dtype in _dtypes(file)}
    return {}


def check_claim(name: str, config: PreTrainedConfig, dtypes: Mapping[str, str]) -> None:
    """Refuse a config that says the weights are quantised over weights that are all plain numbers.

    Raises:
        ModelLoadError: so it is.
    """
    if not dtypes or not PLAIN.union(COUNTERS).issuperset(dtypes.values()):
        return
    for key, stored in claims(config):
        by_bits = stored.get("load_in_4bit") or stored.get("load_in_8bit")
        method = stored.get("quant_method") or ("bitsandbytes" if by_bits else None)
        if method in PACKED:
            kinds = ", ".join(sorted(PLAIN.intersection(dtypes.values())))
            raise ModelLoadError(
                f"The config and the weights of {name!r} disagree: config.json says that they are "
                f"quantised ({key}, quant_method {method!r}), and all {len(dtypes)} tensors are "
                f"stored as plain numbers ({kinds}). Take {key} out of config.json if the weights "
                "are meant, or fetch the model again."
            )


def check_plain(
    name: str, config: PreTrainedConfig, hf: PreTrainedModel, dtypes: Mapping[str, str]
) -> None:
    """Refuse weights stored as integers or in 8 bits where the config says nothing of it: they
    would be cast.

    Args:
        name: of the model, for the message.
        config: as stored, without what loading adds.
        hf: as loaded.
        dtypes: of ``stored_dtypes``.

    Raises:
        ModelLoadError: names some tensors with their dtype.
    """
    odd = {key: dtype for key, dtype in dtypes.items() if dtype not in PLAIN}
    if not odd or any(True for _ in claims(config)):
        return
    weights = set()
    for key, weight in hf.named_parameters():
        if weight.is_floating_point() or weight.itemsize == 1:
            weights.add(key)
    cast = [f"{key} ({odd[key]})" for key, target in _targets(hf, sorted(odd)) if target in weights]
    if cast:
        shown = ", ".join(cast[:3]) + (", …" if len(cast) > 3 else "")
        raise ModelLoadError(
            f"{len(cast)} weight{'s' if len(cast) != 1 else ''} of {name!r} stored as integers or "
            "in 8 bits, without a quantization_config in config.json that says how to read them: "
            f"{shown}. Give the checkpoint in bfloat16, float16 or float32, or one whose config "
            "names the quantisation."
        )


def _dtypes(file: str) -> Iterator[tuple[str, str]]:
    if file.endswith(".safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (no dictionary)
                yield key, tensors.get_slice(key).get_dtype()
    else:
        for key, tensor in torch.load(file, map_location="meta", weights_only=True).items():
            yield key, str(tensor.dtype).removeprefix("torch.")


def _targets(hf: PreTrainedModel, names: list[str]) -> Iterator[tuple[str, str]]:
    """Where the loader puts each stored tensor."""
    conversions = get_model_conversion_mapping(hf)
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    state = hf.state_dict()
    for name in names:
        yield name, rename_source_key(name, renamings, converters, hf.base_model_prefix, state)[0]
