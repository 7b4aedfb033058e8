"""The repair as a LoRA adapter for the edited checkpoint, which stays as it is.

What is put back into a writer is of low rank: ``B = write M`` and ``A = read' W_base``. PEFT's
format, for linear layers, GPT-2's Conv1D and embeddings; experts that are fused and biases have no
place in it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from refusal.audits.forensics.adapter import CONFIG, WEIGHTS
from refusal.audits.forensics.blocks import columns
from refusal.audits.forensics.examine import FOUND, Known
from refusal.audits.forensics.pairs import Folders
from refusal.audits.forensics.repair import (
    Correction,
    Repaired,
    cannot_restore,
    card,
    find_corrections,
)
from refusal.core.errors import ExportError
from refusal.core.storage import new_folder, write_json, write_tensors, write_text
from refusal.weights.checkpoint_plan import read_config
from refusal.weights.lora import PREFIX
from refusal.weights.proxy_model import skeleton
from refusal.weights.save import SLACK

FOLDER = "Write a folder instead: leave --as lora out."


@torch.no_grad()
def repair_adapter(candidate: str, base: str, out: Path, *, known: Known = FOUND) -> Repaired:
    """Write an adapter that puts back what was projected out of the candidate, loaded on it.

    Args:
        candidate: a folder or hub id; of an adapter there is nothing to repair.
        base: what it was made from.
        out: a new or empty folder.
        known: where the model's kind is not understood by itself.

    Raises:
        ExportError: nothing was projected out of the candidate, it is an adapter, a weight that an
            adapter has no place for, or ``out`` is taken.
        StorageError: a file cannot be written.
        refusal.Error: what ``compare_weights`` raises.
    """
    found, changes, corrections = find_corrections(candidate, base, known)
    model = skeleton(read_config(changes.candidate.checkpoint))
    matrices = [one for one in corrections if one.writer.matrix]
    rank = max(one.matrix.shape[0] for one in matrices)
    tensors: dict[str, Tensor] = {}
    modules, transposed = [], False
    for one in matrices:
        name = one.writer.target.removesuffix(".weight")
        owner = model.get_submodule(name) if name != one.writer.target else None
        tensors |= _factors(one, name, owner, changes, rank)
        modules.append(name)
        transposed |= isinstance(owner, Conv1D)
    lost = cannot_restore(found)
    if biases := len(corrections) - len(matrices):
        lost = (*lost, f"{biases} biases were projected too; an adapter leaves them as they are.")
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": candidate,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": modules,
    }
    with new_folder(out, sum(tensor.nbytes for tensor in tensors.values()) + SLACK) as folder:
        write_json(folder / CONFIG, config)
        write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
        write_text(folder / "README.md", card(found, lost))
    layers = len({layer.layer for layer in found.record.edited})
    return Repaired(out, len(matrices), layers, lost)


def _factors(
    one: Correction, name: str, owner: nn.Module | None, changes: Folders, rank: int
) -> dict[str, Tensor]:
    """``A`` and ``B`` of one writer, filled up with zeros to the rank of the adapter."""
    weight = changes.base.read(one.writer.name)
    linear = isinstance(owner, nn.Linear) and one.writer.axis == 0
    plain = linear or (isinstance(owner, (Conv1D, nn.Embedding)) and one.writer.axis == 1)
    if not plain or weight.dim() != 2:
        raise ExportError(
            f"{one.writer.name} is no weight of a linear layer or embedding, and a LoRA adapter "
            f"has no place for it. {FOLDER}"
        )
    down = torch.cat([one.read.T @ block for block in columns(weight, one.writer.axis)], 1)
    up = one.write @ one.matrix
    missing = rank - up.shape[1]
    down = nn.functional.pad(down, (0, 0, 0, missing)).contiguous()
    up = nn.functional.pad(up, (0, missing)).contiguous()
    if isinstance(owner, nn.Embedding):
        kinds = ("lora_embedding_A", "lora_embedding_B")
    else:
        kinds = ("lora_A.weight", "lora_B.weight")
    return {f"{PREFIX}{name}.{kinds[0]}": down, f"{PREFIX}{name}.{kinds[1]}": up}
