"""Whether edited weights do what ablation by hooks does, on a few tokens.

Every write is checked by itself when the parameters are found. What is read past the stream shows
only here: Zamba's shared blocks read the embedding, which the hooks once left as it was. Behind a
post-norm the two differ for a reason that is known (``norms``); elsewhere a difference means that
one of them is wrong, and nothing may be made of it.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from refusal.core.errors import UnsupportedModelError
from refusal.interventions.ablate_add import Ablate
from refusal.interventions.stream import edits_everywhere
from refusal.model.hooks import Edit, hooked
from refusal.model.probe import probe_ids
from refusal.model.sites import Sites
from refusal.weights.edit import WeightEdit
from refusal.weights.projection import project_weight

TOKENS = 16
LIMIT = 1e-3  # of what the ablation does to the logits
ROUNDING = 1e-5  # of the logits themselves, in float32
NEVER = -1e9  # a logit that a model sets for tokens that it must not write (Chameleon's pictures)
HALF_ROUNDING = 4  # times what hooks on the edited model still do, in half precisions


class Agreement:
    """Runs the unedited model, without and with ablation by hooks, to compare the edited one with
    it.
    """

    def __init__(self, hf: PreTrainedModel, sites: Sites, ablation: Ablate) -> None:
        self.hf, self.sites = hf, sites
        self.hooks = ablation.edits(hf, sites)
        # once more they can only round what they have done to the weights; but if they do not
        # repeat, rounding has to be made
        self.again = self.hooks if ablation.repeats else _rounding(hf, sites)
        self.plain = self.logits()
        with hooked(self.hooks):
            self.ablated = self.logits()

    def check(self, edit: WeightEdit, edited: Mapping[str, Tensor] | None = None) -> None:
        """Run the edited model, or with ``edited`` in the place of its own parameters, and compare.

        Raises:
            UnsupportedModelError: it does something else than the hooks did, and there is no
                post-norm.
        """
        if any(parameter.norm is not None for parameter in edit.parameters):
            return
        found = self.logits(edited)
        gap, effect = float((found - self.ablated).norm()), float((found - self.plain).norm())
        if self.hf.dtype in (torch.float32, torch.float64):
            rounding = ROUNDING * float(self.plain.norm())
        else:  # where the weights have lost the direction the hooks can only round once more
            with hooked(self.again):
                rounding = HALF_ROUNDING * float((self.logits(edited) - found).norm())
        if not gap <= LIMIT * effect + rounding:
            raise UnsupportedModelError(
                f"Edited weights and ablation by hooks differ in {type(self.hf).__name__}: by "
                f"{gap / max(effect, 1e-12):.1%} of what ablation does to the logits (limit "
                f"{LIMIT:.1%}), and no post-norm explains it. Something reads the stream past one "
                "of them, so the weights are not exported. Measure with hooks: use Ablate."
            )

    def edited(self, edit: WeightEdit) -> dict[str, Tensor]:
        """Edited copies of the parameters, by name."""
        found = {}
        for parameter in edit.parameters:
            weight = self.hf.get_parameter(parameter.name).detach()
            removal = edit.removals[parameter.name]
            found[parameter.name] = project_weight(weight, parameter.axis, removal)
        return found

    def logits(
        self, edited: Mapping[str, Tensor] | None = None, model: nn.Module | None = None
    ) -> Float[Tensor, "token vocab"]:
        """Of the model (or ``model``) with ``edited`` in the place of its own parameters, on a few
        tokens.

        Centred, since a constant changes no probability. A tied head stays as it is when the
        embedding changes.
        """
        arguments = {"input_ids": probe_ids(self.hf, TOKENS), "use_cache": False}
        with torch.inference_mode():
            output = functional_call(
                model or self.hf, dict(edited or {}), (), arguments, tie_weights=False
            )
        logits: Tensor = output.logits[0].float().cpu()
        logits = logits[:, logits[0] > NEVER]
        return logits - logits.mean(-1, keepdim=True)


def check_unedited(hf: PreTrainedModel, sites: Sites, edit: WeightEdit) -> None:
    """Compare the hooks with copies of the parameters that are edited and swapped in for a pass.

    Raises:
        UnsupportedModelError: as ``Agreement.check``.
    """
    agreement = Agreement(hf, sites, edit.ablation)
    agreement.check(edit, agreement.edited(edit))


def _rounding(hf: PreTrainedModel, sites: Sites) -> list[Edit]:
    """All that is written to the stream, moved by as much as rounding it once more may: each number
    by a share drawn uniformly within the dtype's precision.
    """
    precision, random = torch.finfo(hf.dtype).eps, torch.Generator().manual_seed(0)

    def move(x: Tensor) -> Tensor:
        draws = torch.rand(x.shape, generator=random) - 0.5
        return (x.float() * (1 + precision * draws.to(x.device))).to(x.dtype)

    return edits_everywhere(hf, sites, lambda place: move)
