"""The paper-literal way, as the baseline of the benchmarks: padded batches, every token's logits,
hooks on every block.

For each candidate three runs over the validation prompts: ablated on harmful ones (bypass), ablated
and added on harmless ones (KL, induce). Nothing is shared between prompts or candidates and nothing
is skipped.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from refusal import CandidateScore, ChatModel, Direction, kl_divergence, refusal_metric

BATCH = 32


class Naive:
    """Scores one candidate at a time; counts the tokens it runs, padding included."""

    def __init__(
        self,
        model: ChatModel,
        harmful: Sequence[str],
        harmless: Sequence[str],
        tokens: Sequence[int],
    ) -> None:
        self.model, self.tokens = model, list(tokens)
        self.harmful, self.harmless = model.tokenize(harmful), model.tokenize(harmless)
        self.forward_tokens = 0
        self.base = self.logits(self.harmless)

    def score(self, direction: Direction) -> CandidateScore:
        """All three scores of one candidate."""
        with self.ablated(direction.vector):
            bypass = refusal_metric(self.logits(self.harmful), self.tokens).mean()
            kl = kl_divergence(self.base, self.logits(self.harmless)).mean()
        with self.added(direction.vector * direction.norm, direction.layer):
            induce = refusal_metric(self.logits(self.harmless), self.tokens).mean()
        return CandidateScore(
            direction.position, direction.layer, float(bypass), float(induce), float(kl)
        )

    def logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Last-token logits, from batches padded on the left with the logits of every token
        computed.
        """
        out = []
        for start in range(0, len(rows), BATCH):
            group = rows[start : start + BATCH]
            width = max(map(len, group))
            ids = torch.tensor(
                [[0] * (width - len(row)) + list(row) for row in group], device=self.model.device
            )
            mask = torch.tensor(
                [[0] * (width - len(row)) + [1] * len(row) for row in group],
                device=self.model.device,
            )
            self.forward_tokens += ids.numel()
            with torch.inference_mode():
                positions = (mask.cumsum(-1) - 1).clamp_min(0)
                result = self.model.hf(
                    input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
                )
            out.append(result.logits[:, -1])
        return torch.cat(out)

    @contextmanager
    def ablated(self, unit: Tensor) -> Iterator[None]:
        """Project out at every block input and at every write."""
        unit = unit.to(self.model.device)

        def project(x: Tensor) -> Tensor:
            return (x.float() - (x.float() @ unit)[..., None] * unit).to(x.dtype)

        hooks = [self._block(layer).register_forward_pre_hook(_before(project), with_kwargs=True)
                 for layer in range(self.model.sites.n_layers)]  # fmt: skip
        names = [name for block in self.model.sites.writers for name in block]
        hooks += [
            self.model.hf.get_submodule(name).register_forward_hook(_after(project))
            for name in names
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def added(self, vector: Tensor, layer: int) -> Iterator[None]:
        """Add at the input of one block."""
        vector = vector.to(self.model.device)
        hook = self._block(layer).register_forward_pre_hook(
            _before(lambda x: (x.float() + vector).to(x.dtype)), with_kwargs=True
        )
        try:
            yield
        finally:
            hook.remove()

    def _block(self, layer: int) -> nn.Module:
        return self.model.hf.get_submodule(self.model.sites.blocks[layer])


def _before(fn: Any) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (fn(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": fn(kwargs["hidden_states"])}

    return hook


def _after(fn: Any) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return (fn(output[0]), *output[1:]) if isinstance(output, tuple) else fn(output)

    return hook
