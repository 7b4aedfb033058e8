"""Which tensors of a checkpoint write to the residual stream, in which layer and component, without
loading it.
"""

import re
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refusal.core.errors import QuantisedModelError, UnsupportedModelError
from refusal.weights.checkpoint import Checkpoint
from refusal.weights.checkpoint_edits import Plan
from refusal.weights.checkpoint_plan import find_targets, load_norm, make_plan
from refusal.weights.proxy_model import MEND

# By words in a parameter's name, the first that fits.
COMPONENTS = (
    ("experts", r"expert"),
    ("attention", r"attn|attention"),
    ("MLP", r"mlp|feed_forward|ffn|\bfc|dense_4h|\bff\b"),
    ("state space", r"mamba|mixer|ssm|conv"),
)
FEW = 8  # a tensor with fewer inputs than the width by this is no matrix: a bias of each expert
NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class Writer:
    """A tensor of a checkpoint that writes to the stream.

    Attributes:
        name: of the tensor in the base's files.
        target: the parameter at run time that it goes to.
        axis: its dimension of size d_model.
        layer: number of its block; ``None`` before the first.
        component: attention, MLP, experts, embedding, ...
        gain: of the norm between it and the stream; ``None`` without one.
        matrix: it has inputs; a bias has none.
    """

    name: str
    target: str
    axis: int
    layer: int | None
    component: str
    gain: Float[Tensor, "d_model"] | None = field(default=None, compare=False)
    matrix: bool = True


def find_writers(
    checkpoint: Checkpoint, blocks: str | None = None, writers: tuple[str, ...] = ()
) -> tuple[Writer, ...]:
    """Every tensor that writes to the stream, in the order of the layers; found on a small model of
    the same config, as the export with ``--stream`` does.

    Args:
        checkpoint: the base's.
        blocks: path of the decoder blocks, where it is not found.
        writers: modules of a block that write, where they are not found.

    Raises:
        QuantisedModelError: the weights are packed by a quantiser.
        UnsupportedModelError: the model's kind is not completely understood.
    """
    try:
        plan = make_plan(checkpoint, None, "", blocks, writers or None)
    except QuantisedModelError as error:
        raise QuantisedModelError(
            f"{checkpoint.folder} is stored quantised, and below 8 bits rounding hides what "
            "was done to the weights. Give the checkpoint in bfloat16, float16 or float32."
        ) from error
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            str(error).replace(MEND, "Name blocks and writers with --blocks and --writers.")
        ) from error
    targets, _ = find_targets(plan.model, checkpoint)
    gains = {norm: gain_of(load_norm(plan, norm, checkpoint)) for norm in plan.norms}
    found = []
    for name, edit in plan.edits.items():
        target = targets[name].name
        gain = None if edit.norm is None else gains[edit.norm]
        layer = _layer(plan, target)
        component = "embedding" if layer is None else component_of(name)
        entry = checkpoint.entries[name]
        inputs = entry.numel // entry.shape[edit.axis]
        matrix = inputs * FEW >= entry.shape[edit.axis] and not name.endswith("bias")
        found.append(Writer(name, target, edit.axis, layer, component, gain, matrix))
    return tuple(sorted(found, key=lambda one: (-1 if one.layer is None else one.layer, one.name)))


def component_of(name: str) -> str:
    """The component that a tensor inside a block belongs to, by its name."""
    inside = NUMBER.split(name, maxsplit=1)[-1].lower()
    return next((word for word, known in COMPONENTS if re.search(known, inside)), "other")


def gain_of(norm: nn.Module) -> Float[Tensor, "d_model"]:
    """What an RMS or layer norm multiplies each coordinate by, measured: Gemma's is 1 + weight."""
    size = next(norm.parameters()).shape[0]
    signs = torch.tensor([1.0, -1.0]).repeat(size)[:size] * 100.0  # its epsilon is nothing beside
    with torch.no_grad():
        plus, minus = (norm.float()(x[None, None])[0, 0] for x in (signs, -signs))
    gain: Tensor = (plus - minus) / 2 * signs.sign()
    return gain


def _layer(plan: Plan, target: str) -> int | None:
    """The block's number in a parameter's name, where the model has a list of that many blocks."""
    count = plan.model.config.get_text_config().num_hidden_layers
    for match in NUMBER.finditer(target):
        path = target[: match.start()]
        module = plan.model.get_submodule(path) if path else plan.model
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return int(match[1])
    return None
