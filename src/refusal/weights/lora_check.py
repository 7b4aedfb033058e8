"""A written adapter, loaded by PEFT on the model it is for: every tensor must arrive, and do what
the edit does.

PEFT only warns where it leaves a part of an adapter out, and knows some families' experts by other
names than they have; so the one sure thing is to let it load what was written.
"""

import copy
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from refusal.core.errors import ExportError
from refusal.model.sites import Sites
from refusal.weights.agreement import LIMIT, ROUNDING, Agreement
from refusal.weights.edit import WeightEdit
from refusal.weights.verify import check_tensors, same_bits, wrong

HALF = 0.25  # of the effect, in half precisions: the tensors have been compared bit for bit before


def require_peft() -> None:
    """Make sure that PEFT is there.

    Raises:
        ExportError: it is not.
    """
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ExportError(
            "An adapter is loaded once by PEFT before it is handed out, and PEFT is not "
            "installed. Install it: pip install 'refusal[lora]', or export the whole model: --as "
            "model."
        ) from error


def check_adapter(
    folder: Path,
    tensors: dict[str, Tensor],
    hf: PreTrainedModel,
    sites: Sites,
    edit: WeightEdit,
) -> None:
    """Load the adapter in ``folder``, which should hold ``tensors``, on the unedited ``hf``, which
    stays as it is.

    Raises:
        ExportError: something is missing, unexpected or another, or its effect is not the edit's.
    """
    from peft import PeftModel, get_peft_model_state_dict

    check_tensors(load_file(folder / "adapter_model.safetensors"), tensors)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = PeftModel.from_pretrained(sharing_copy(hf), str(folder)).eval()
            loaded = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise wrong(
            f"PEFT cannot load it ({(str(error).splitlines() or [type(error).__name__])[0]})"
        ) from error
    kept = {}
    for name, tensor in loaded.items():
        if name in tensors or "lora_" in name:
            kept[name] = tensor.float().cpu()
    odd = sorted(kept.keys() ^ tensors.keys())
    both = kept.keys() & tensors.keys()
    odd += [name for name in tensors if name in both and not same_bits(kept[name], tensors[name])]
    if odd:
        raise ExportError(
            f"PEFT loads {len(odd)} of the adapter's {len(tensors)} tensors otherwise than they "
            f"were written, {odd[0]} first, so it would not do what the edit does. It was deleted. "
            "Export the whole model instead: --as model."
        )
    agreement = Agreement(hf, sites, edit.ablation)
    edited = agreement.logits(agreement.edited(edit))
    gap = float((agreement.logits(model=wrapped.get_base_model()) - edited).norm())
    effect, size = float((edited - agreement.plain).norm()), float(agreement.plain.norm())
    exact = hf.dtype in (torch.float32, torch.float64)
    if not gap <= (LIMIT * effect + 10 * ROUNDING * size if exact else HALF * (effect + size)):
        raise wrong(
            f"loaded by PEFT it differs from the edit by {gap / max(effect, 1e-12):.1%} of the "
            "edit's effect"
        )


def sharing_copy(hf: PreTrainedModel) -> PreTrainedModel:
    """The model's modules anew around the same matrices, so that wrapping them leaves the model as
    it is.

    Vectors are copied too, because PEFT loads an adapter's biases into the layer's own.
    """
    shared: dict[int, object] = {}
    for parameter in hf.parameters():
        data = parameter.detach() if parameter.dim() > 1 else parameter.detach().clone()
        shared[id(parameter)] = nn.Parameter(data, requires_grad=False)
    return copy.deepcopy(hf, shared)
