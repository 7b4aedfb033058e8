"""What must hold before a model is measured: its weights come from the checkpoint, are numbers, and
do something.

transformers fills what a checkpoint lacks with random numbers and only warns.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from refusal.core.errors import ModelLoadError
from refusal.model.checkpoint_stored import check_claim, check_plain, claims, stored_dtypes
from refusal.model.placement import whole_weights

MEND = "Fetch or save the model again, with the config that belongs to it."
SHOWN = 3  # tensors that a message names

# Parts of a checkpoint beside the language model; a class without them leaves them unread.
OTHER_PARTS = re.compile(
    r"^(model\.)?(vis|image|img|audio|video|speech|multi_?modal|mm_|embed_(vision|audio)|talker|token2wav|mtp|nextn|v_head"
    r"|value_head|reward|siglip|clip|qformer|perceiver|resampler|aligner|connector|projector)",
    re.IGNORECASE,
)
KV_SCALE = re.compile(
    r"\.[kv](_proj\.output)?_scale$"
)  # for caches in 8 bits, which serving engines keep


def hub_options(revision: str | None = None) -> dict[str, Any]:
    """What transformers is told of any checkpoint's files: which version, and that its own code is
    not run.
    """
    return {"trust_remote_code": False} | ({"revision": revision} if revision is not None else {})


def load_whole(
    name: str,
    source: str,
    auto: Any,
    config: PreTrainedConfig,
    options: Mapping[str, Any],
    told: Mapping[str, Any],
) -> PreTrainedModel:
    """Load a checkpoint, and refuse one that is not whole, not numbers, or not what its config
    says.

    Args:
        name: of the model, for messages.
        source: what transformers loads.
        auto: the class whose ``from_pretrained`` loads it.
        config: as stored.
        options: of ``hub_options``.
        told: dtype and placement.

    Raises:
        ModelLoadError: names the tensors.
    """
    check_quantisation(name, config)
    try:
        # Shapes that do not fit are passed over here so that check_loaded can say which they are.
        extra = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        hf, info = auto.from_pretrained(source, **options, **told, **extra)
    except Exception:  # a quantiser may raise anything; raised again where this says nothing better
        check_claim(name, config, stored_dtypes(source, options))
        raise
    dtypes = stored_dtypes(source, options)
    check_claim(name, config, dtypes)
    check_plain(name, config, hf, dtypes)
    check_loaded(name, hf, info)
    check_values(name, hf)
    return hf  # type: ignore[no-any-return]


def check_quantisation(name: str, config: PreTrainedConfig) -> None:
    """Refuse weights quantised in a way that transformers passes over: it would read packed numbers
    as weights.

    Raises:
        ModelLoadError: so they are.
    """
    for key, stored in claims(config):
        method = stored.get("quant_method")
        by_bits = bool(stored.get("load_in_4bit") or stored.get("load_in_8bit"))
        if key != "quantization_config" or not (
            by_bits or method in AUTO_QUANTIZATION_CONFIG_MAPPING
        ):
            raise ModelLoadError(
                f"The model {name!r} is quantised in a way that transformers does not read ({key} "
                f"in config.json, {f'quant_method {method!r}' if method else 'no quant_method'}). "
                "Give the unquantised model."
            )


def adapter_message(name: str) -> str:
    """What to say of an adapter: transformers would load the model that it was made for, from
    wherever it lies.
    """
    return (
        f"{name!r} is an adapter (adapter_config.json), not a whole model. Merge it into its base "
        "model (PEFT's merge_and_unload), save that, and give the folder."
    )


def check_loaded(name: str, hf: PreTrainedModel, info: Mapping[str, Collection[Any]]) -> None:
    """Refuse a checkpoint that lacks a tensor, has one that the model does not use, or one of
    another shape.

    Excepted: tied weights and what transformers makes by rule (it leaves both out of ``info``),
    buffers, layers that predict further tokens, and parts for images or sound.

    Args:
        name: of the model, for the message.
        hf: as loaded.
        info: what ``from_pretrained(…, output_loading_info=True)`` says.

    Raises:
        ModelLoadError: names some tensors, and how many there are.
    """
    if getattr(hf, "_hf_peft_config_loaded", False):
        raise ModelLoadError(adapter_message(name))
    faults = []
    text = hf.config.get_text_config()
    missing = sorted(info["missing_keys"])
    unexpected = sorted(key for key in info["unexpected_keys"] if not _unused_by_rule(key, hf))
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        shown = []
        for key, stored, wanted in mismatched:
            shown.append(f"{key} {_shape(stored)}, the model {_shape(wanted)}")
        faults.append(
            f"{_count(mismatched)} of another shape (the checkpoint has {_some(shown, '; ')})"
        )
    if missing:
        every = len(missing) >= len(
            hf.state_dict().keys() - getattr(hf, "all_tied_weights_keys", {}).keys()
        )
        faults.append(
            f"{_count(missing)} missing{', which is all of them' if every else ''} "
            f"({_some(missing)})"
        )
    if unexpected:
        faults.append(f"{_count(unexpected)} without a place in the model ({_some(unexpected)})")
    if faults:
        raise ModelLoadError(
            f"The checkpoint of {name!r} is not that of a {type(hf).__name__} with "
            f"{text.num_hidden_layers} layers as its config.json says: {'; '.join(faults)}. {MEND}"
        )


def check_adapter(name: str, hf: PreTrainedModel, info: Any) -> None:
    """Refuse an adapter that was put on its base in part.

    Args:
        name: of the adapter, for the message.
        hf: the base that it was put on.
        info: what ``load_adapter`` returns.

    Raises:
        ModelLoadError: names some tensors.
    """
    kinds = {
        "missing": info.missing_keys,
        "without a place": info.unexpected_keys,
        "of another shape": info.mismatched_keys,
    }
    faults = []
    for what, keys in kinds.items():
        if keys:
            shown = _some([str(key) for key in sorted(keys)])
            faults.append(f"{_count(keys)} {what} ({shown})")
    if faults:
        raise ModelLoadError(
            f"The adapter {name!r} does not fit its base model ({type(hf).__name__}): "
            f"{'; '.join(faults)}. Give the base that it was made for (base_model_name_or_path in "
            "adapter_config.json)."
        )


def conversion_faults(error: BaseException) -> str:
    """Which tensors transformers could not put together, and why: it says so in a log only, before
    it raises.
    """
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        info = trace.tb_frame.f_locals.get("loading_info")
        if info is not None and getattr(info, "conversion_errors", None):
            found = sorted(info.conversion_errors.items())
            shown = [f"{key}: {_cause(text)}" for key, text in found]
            return f"{_count(found)} cannot be put together ({_some(shown, '; ')})"
        trace = trace.tb_next
    return ""


def check_values(name: str, hf: PreTrainedModel) -> None:
    """Refuse weights that are NaN or infinite, and a model whose matrices all hold one and the same
    number.

    All processes of a split model must ask.

    Raises:
        ModelLoadError: names some tensors.
    """
    bad, narrow, constant, matrices = [], False, 0, 0
    for key, tensor in whole_weights(hf):
        if (
            not tensor.is_floating_point()
            or tensor.numel() == 0
            or tensor.is_meta
            or tensor.itemsize == 1
        ):
            continue
        low, high = (
            tensor.detach().aminmax()
        )  # NaN goes through both; nothing as large as the tensor is allocated
        if not (low.isfinite() and high.isfinite()):
            bad.append(f"{key} ({str(tensor.dtype).removeprefix('torch.')})")
            narrow |= tensor.dtype == torch.float16
        elif tensor.dim() > 1:
            matrices += 1
            constant += int(low == high)
    if bad:
        mend = (
            "float16 holds no more than 65504: use --dtype bfloat16 or float32; if it is the same "
            "there, the checkpoint is damaged"
            if narrow
            else "The checkpoint is damaged: fetch it again"
        )
        raise ModelLoadError(
            f"{_count(bad)} of {name!r} with NaN or infinity: {_some(bad)}. {mend}."
        )
    if matrices and constant == matrices:
        raise ModelLoadError(
            f"All {matrices} weight matrices of {name!r} are constant (all zeros, say): this "
            "model computes nothing. Fetch or save the checkpoint again."
        )


def _unused_by_rule(key: str, hf: PreTrainedModel) -> bool:
    if OTHER_PARTS.search(key) or any(
        buffer.endswith(key) or key.endswith(buffer) for buffer, _ in hf.named_buffers()
    ):
        return True
    if KV_SCALE.search(key) and getattr(hf, "hf_quantizer", None) is not None:
        return True
    text = hf.config.get_text_config()
    ahead = (
        getattr(text, "num_nextn_predict_layers", None)
        or getattr(text, "num_mtp_layers", None)
        or 0
    )
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", key)
    return layer is not None and 0 <= int(layer[1]) - text.num_hidden_layers < ahead


def _cause(text: str) -> str:
    """What went wrong, without the traceback before it and the name of transformers' operation
    after it.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Error")]
    return lines[-1].strip().rstrip(".") if lines else "no reason given"


def _count(things: Sequence[Any]) -> str:
    return f"{len(things)} tensor{'s' if len(things) != 1 else ''}"


def _some(names: Sequence[str], between: str = ", ") -> str:
    return between.join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _shape(shape: Sequence[int]) -> str:
    return str(tuple(shape))
