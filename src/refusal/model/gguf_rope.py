"""How positions are scaled in a ``.gguf`` file, carried into the config: transformers drops the
file's factors.

Llama-3.1 and later keep one factor per rotary frequency in a tensor, by which the frequency is
divided.
"""

import torch
from gguf import GGUFReader
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from refusal.core.errors import ModelLoadError

FACTORS = "rope_freqs.weight"
PUBLISHED = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
TOLERANCE = 1e-5  # relative; the file has them in float32


def carry_factors(reader: GGUFReader, model: PreTrainedModel) -> bool:
    """Set the rotary scaling that the file's factors come from, if one of Llama-3.1's kind gives
    them back.

    It is for the config that is saved; the model in memory keeps its frequencies.

    Returns:
        Whether the config now says what the tensor does; without such a tensor, ``True``.
    """
    tensor = next((each for each in reader.tensors if each.name == FACTORS), None)
    if tensor is None:
        return True
    config = model.config
    rope = getattr(config, "rope_parameters", None)
    if config.model_type != "llama" or not rope or rope.get("rope_type", "default") != "default":
        return False
    factors = torch.tensor(tensor.data.reshape(-1).tolist(), dtype=torch.float64)
    if not factors.numel() or not (factors.isfinite() & (factors > 0)).all():
        return False
    if torch.equal(factors, torch.ones_like(factors)):
        return True
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = rope["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    if factors.shape != plain.shape:
        return False
    # The longest waves are divided by the whole factor, none by more.
    config.rope_parameters = {
        **rope,
        "rope_type": "llama3",
        "factor": round(float(factors.max()), 4),
        **PUBLISHED,
    }
    computed, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    if computed.shape == plain.shape and torch.allclose(
        plain / factors, computed.double(), rtol=TOLERANCE, atol=0.0
    ):
        return True
    config.rope_parameters = rope
    return False


def check_scaling(name: str, reader: GGUFReader, model: PreTrainedModel) -> None:
    """Refuse a file whose metadata scales positions where transformers has made a config that does
    not.

    Raises:
        ModelLoadError: so it is.
    """
    kind = reader.get_field("general.architecture")
    prefix = f"{kind.contents()}.rope" if kind is not None else "rope"
    scaling = reader.get_field(f"{prefix}.scaling.type")
    linear = reader.get_field(f"{prefix}.scale_linear")
    how = str(scaling.contents()) if scaling is not None else "none"
    if how == "none" and linear is not None and float(linear.contents()) != 1.0:
        how = "linear"
    rope = getattr(model.config, "rope_parameters", None) or {}
    if how != "none" and rope.get("rope_type", "default") == "default":
        raise ModelLoadError(
            f"{name} scales its positions ({prefix}.scaling.type {how!r}), which transformers "
            "leaves out when it reads the file: the model would compute something else. Give the "
            "model as a folder of safetensors."
        )
