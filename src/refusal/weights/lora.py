"""The edit as a LoRA adapter: it is of the rank of what is projected out, one as a rule, so an
adapter of that rank holds it exactly.

``W' = W - alpha Q^T Q W = W + B A`` with ``B = -alpha Q^T`` and ``A = Q W`` (behind a post-norm the
two ``Q`` differ). What is written is PEFT's own format: Linear, Conv1D and embedding layers as
target modules, fused experts as target parameters. LoRA has no edit of a bias, but an adapter may
carry biases whole (``bias="all"``): those that are edited are in it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from refusal.core.errors import ExportError
from refusal.weights.edit import WeightEdit
from refusal.weights.parameters import StreamParameter
from refusal.weights.projection import Removal, component, project_weight

# Of peft 0.21, where loading such an adapter ends in an error.
PEFT_REFUSES = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})

PREFIX = "base_model.model."  # how PEFT names a wrapped model's modules


@dataclass
class Adapter:
    """A PEFT adapter: what goes into ``adapter_config.json`` and ``adapter_model.safetensors``."""

    config: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


def adapter_of(
    model: PreTrainedModel,
    edit: WeightEdit,
    name: str,
    revision: str | None,
) -> Adapter:
    """The orthogonalisation of the unedited ``model`` as a PEFT adapter, float32.

    Args:
        model: as it was loaded.
        edit: what is taken out of which parameter.
        name: hub id or folder of the model, for the adapter's configuration.
        revision: its revision.

    Raises:
        ExportError: a parameter that PEFT has no layer for.
    """
    parameters, rank = edit.parameters, edit.ablation.rank
    _refuse_state_space(model, parameters)
    adapter = Adapter({})
    modules, targets, conv = [], [], False
    biases = False
    # PEFT takes layers named like experts (down_proj) for experts where it knows a model's experts
    # to be fused, and would then silently leave the layers out: there, name all weights as
    # parameters.
    fused = any(model.get_parameter(parameter.name).dim() == 3 for parameter in parameters)
    for parameter in parameters:
        owner_name, _, leaf = parameter.name.rpartition(".")
        owner, weight = (
            model.get_submodule(owner_name),
            model.get_parameter(parameter.name).detach(),
        )
        removal = edit.removals[parameter.name]
        up = -removal.strength * removal.write.T
        key = PREFIX + owner_name
        if leaf == "weight" and isinstance(owner, (nn.Linear, Conv1D)) and not fused:
            if (parameter.axis == 0) != isinstance(owner, nn.Linear):
                raise ExportError(
                    f"{parameter.name} writes to the stream along the layer's input, which no "
                    "LoRA layer does. Export the whole model instead: --as model."
                )
            along = component(weight, parameter.axis, removal)
            adapter.tensors |= {
                f"{key}.lora_A.weight": along,
                f"{key}.lora_B.weight": up,
            }
            modules.append(owner_name)
            conv |= isinstance(owner, Conv1D)
        elif leaf == "weight" and isinstance(owner, nn.Embedding) and _looks_up_plainly(owner):
            along = component(weight, 1, removal)
            adapter.tensors |= {
                f"{key}.lora_embedding_A": along,
                f"{key}.lora_embedding_B": up,
            }
            modules.append(owner_name)
        elif weight.dim() == 1 and leaf == "bias":
            adapter.tensors[parameter.name] = project_weight(weight.float(), 0, removal)
            biases = True
        elif weight.dim() in (2, 3) and owner_name:
            targets.append(parameter)
        else:
            raise ExportError(
                f"{parameter.name} ({type(owner).__name__}, shape {tuple(weight.shape)}) writes "
                "to the stream, and a LoRA adapter has no layer for it. Export the whole model "
                "instead: --as model."
            )
    _add_targets(adapter, model, targets, edit)
    if biases:
        wrapped = {*modules, *(p.name.rpartition(".")[0] for p in targets)}
        adapter.tensors = {_bias_key(k, wrapped): v for k, v in adapter.tensors.items()}
    adapter.tensors = {k: v.float().cpu().clone().contiguous() for k, v in adapter.tensors.items()}
    adapter.config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "all" if biases else "none",
        "fan_in_fan_out": conv,
        "target_modules": modules,
        "target_parameters": [p.name for p in targets] or None,
    }
    return adapter


def _refuse_state_space(model: PreTrainedModel, parameters: Sequence[StreamParameter]) -> None:
    """PEFT itself refuses these: their fused kernels read the weight past any layer that is put
    around it.
    """
    kind = getattr(model.config, "model_type", None)
    if kind in PEFT_REFUSES and any(p.name.endswith(".out_proj.weight") for p in parameters):
        raise ExportError(
            f"PEFT allows no adapter on the out_proj layers of {kind} models, because fused "
            "kernels would pass it by. Export the whole model instead: --as model."
        )


def _add_targets(
    adapter: Adapter,
    model: PreTrainedModel,
    targets: Sequence[StreamParameter],
    edit: WeightEdit,
) -> None:
    """Parameters that no layer type covers. PEFT nests their wrappers: the one wrapped first is the
    innermost.
    """
    by_owner: dict[str, list[StreamParameter]] = {}
    for parameter in sorted(targets, key=lambda p: p.name):
        by_owner.setdefault(parameter.name.rpartition(".")[0], []).append(parameter)
    for owner_name, group in by_owner.items():
        # PEFT wraps a module's parameters in the order in which the module holds them.
        held = [name for name, _ in model.get_submodule(owner_name).named_parameters(recurse=False)]
        group.sort(key=lambda p: held.index(p.name.rpartition(".")[2]))
        for depth, parameter in enumerate(group):
            key = PREFIX + owner_name + ".base_layer" * (len(group) - 1 - depth)
            down, up = _target_factors(model, parameter, edit.removals[parameter.name])
            adapter.tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}


def _target_factors(
    model: PreTrainedModel, parameter: StreamParameter, removal: Removal
) -> tuple[Float[Tensor, "ranks inner"], Float[Tensor, "out ranks"]]:
    """``A`` and ``B`` of a bare parameter, with the removal's rank for each expert: in ``A`` the
    ranks of an expert lie together, in ``B`` the experts of a rank.

    PEFT reads a three-dimensional parameter as ``[expert, out, in]``, or ``[expert, in, out]`` if
    its module says ``is_transposed``, and a two-dimensional one as ``[out, in]``.
    """
    weight = model.get_parameter(parameter.name).detach()
    along = component(weight, parameter.axis, removal)
    up = -removal.strength * removal.write
    if weight.dim() == 2:
        return (along, up.T) if parameter.axis == 0 else (up, along.T)
    if parameter.axis == 0:
        raise ExportError(
            f"{parameter.name} writes to the stream along its first of three dimensions, which "
            "PEFT takes for the experts. Export the whole model instead: --as model."
        )
    n_experts = weight.shape[0]
    transposed = bool(
        getattr(model.get_submodule(parameter.name.rpartition(".")[0]), "is_transposed", False)
    )
    if (parameter.axis == 2) == transposed:  # the stream is what PEFT calls out
        return along.transpose(0, 1).flatten(0, 1), up.T.repeat_interleave(n_experts, dim=1)
    return up.repeat(n_experts, 1), along.permute(2, 0, 1).flatten(1)


def _looks_up_plainly(owner: nn.Embedding) -> bool:
    """Whether the layer does what PEFT's does: rows by index, perhaps scaled. Some shift the
    index.
    """
    return type(owner).forward is nn.Embedding.forward or hasattr(owner, "embed_scale")


def _bias_key(key: str, wrapped: Collection[str]) -> str:
    """A bias stays in its layer, which PEFT puts inside its own where the weight is adapted."""
    owner, _, leaf = key.rpartition(".")
    if leaf != "bias" or key.startswith(PREFIX):
        return key
    return f"{PREFIX}{owner}.base_layer.bias" if owner in wrapped else f"{PREFIX}{key}"
