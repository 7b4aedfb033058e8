"""The three scores of a candidate, on validation prompts whose unmodified run is kept.

Ablation changes every block, so bypass and KL take a full pass. Addition at layer ``l`` changes nothing before ``l``:
it starts from the block-``l`` input of the unmodified run, and the blocks before are not run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from refusal.batches import batched
from refusal.forward import Batch, call, forward, new_cache, pack
from refusal.hooks import Edit, hooked, skipped
from refusal.interventions import Ablate, Add, Intervention
from refusal.metrics import kl_divergence, refusal_metric
from refusal.model import ChatModel
from refusal.records import Direction, Prompt, RefusalTokens


@dataclass(frozen=True)
class _Baseline:
    """One batch of the unmodified run: block inputs (for the shared prefix and for the rows) and its prefix cache."""

    batch: Batch
    prefix_inputs: dict[int, Float[Tensor, "1 prefix d_model"]]
    row_inputs: dict[int, Float[Tensor, "row token d_model"]]
    prefix_cache: list[tuple[Tensor, Tensor]]


class Scorer:
    """Scores candidates on fixed validation prompts; runs the unmodified model once, at construction."""

    def __init__(
        self,
        model: ChatModel,
        harmful: Sequence[Prompt],
        harmless: Sequence[Prompt],
        tokens: RefusalTokens,
        layers: int,
    ) -> None:
        """``layers``: additions will be asked for at layers ``0 .. layers - 1``."""
        self.model = model
        self.tokens = tokens.ids
        self.layers = layers
        self.harmful_rows = model.tokenize([prompt.text for prompt in harmful])
        self.harmless_rows = model.tokenize([prompt.text for prompt in harmless])
        self.baselines: list[_Baseline] = []
        logits: dict[int, Tensor] = {}
        lengths = [len(row) for row in self.harmless_rows]
        for indices, (baseline, out) in batched(lengths, model.batch_size, self._run_baseline):
            self.baselines.append(baseline)
            logits.update(zip(indices, out, strict=True))
        self.base_logits = torch.stack([logits[i] for i in range(len(lengths))])

    def bypass(self, direction: Direction) -> float:
        """Mean refusal metric of the harmful prompts under ablation."""
        logits = self._logits(self.harmful_rows, Ablate(direction))
        return float(refusal_metric(logits, self.tokens).mean())

    def kl(self, direction: Direction) -> float:
        """Mean KL divergence of the harmless prompts' next token, unmodified against ablated."""
        return float(kl_divergence(self.base_logits, self._logits(self.harmless_rows, Ablate(direction))).mean())

    def induce(self, direction: Direction) -> float:
        """Mean refusal metric of the harmless prompts when the difference in means is added at its layer."""
        metrics = [refusal_metric(self._add_from(b, Add(direction)), self.tokens) for b in self.baselines]
        return float(torch.cat(metrics).mean())

    def _logits(self, rows: list[list[int]], intervention: Intervention) -> Float[Tensor, "prompt vocab"]:
        """Last-token logits of ``rows`` in their order, under an intervention."""
        out: dict[int, Tensor] = {}
        with self.model.apply(intervention):
            work = batched(
                [len(row) for row in rows],
                self.model.batch_size,
                lambda indices: forward(self.model, pack(self.model, [rows[i] for i in indices])),
            )
            for indices, logits in work:
                out.update(zip(indices, logits, strict=True))
        return torch.stack([out[i] for i in range(len(rows))])

    def _run_baseline(self, indices: list[int]) -> tuple[_Baseline, Tensor]:
        """Run harmless rows unmodified, keeping the block inputs that additions start from."""
        model = self.model
        batch = pack(model, [self.harmless_rows[i] for i in indices])
        prefix_inputs: dict[int, Tensor] = {}
        row_inputs: dict[int, Tensor] = {}
        prefix_tokens = batch.prefix.shape[1]

        def read(layer: int) -> Edit:
            def keep(x: Tensor) -> None:
                first = prefix_tokens > 0 and layer not in prefix_inputs
                (prefix_inputs if first else row_inputs)[layer] = x

            return Edit(model.hf.get_submodule(model.sites.blocks[layer]), "input", keep)

        cache = new_cache(model) if prefix_tokens else None
        with hooked([read(layer) for layer in range(self.layers)]):
            logits = forward(model, batch, cache=cache)
        stored = []
        if cache is not None:  # of the batch's keys and values only the shared prefix is wanted, once
            stored = [
                (layer.keys[:1, :, :prefix_tokens], layer.values[:1, :, :prefix_tokens]) for layer in cache.layers
            ]
            stored = [(keys.clone(), values.clone()) for keys, values in stored[: self.layers]]
        return _Baseline(batch, prefix_inputs, row_inputs, stored), logits

    def _add_from(self, baseline: _Baseline, addition: Add) -> Float[Tensor, "row vocab"]:
        """Last-token logits with ``addition``, the blocks before its layer not run."""
        model, batch, layer = self.model, baseline.batch, addition.direction.layer
        blocks = [model.hf.get_submodule(name) for name in model.sites.blocks]
        with skipped(blocks[:layer]):
            cache = None
            if batch.prefix.shape[1]:
                cache = new_cache(model)
                start = addition(baseline.prefix_inputs[layer])
                with hooked([Edit(blocks[layer], "input", lambda x: start)]):
                    self._head_once(batch.prefix, cache)
                for index in range(layer):  # skipped blocks: the unmodified keys stand in, so that lengths agree
                    cache.layers[index].update(*baseline.prefix_cache[index])
            start_rows = addition(baseline.row_inputs[layer])
            tail = Batch(batch.prefix[:, :0], batch.ids, batch.mask, batch.positions, batch.last)
            if cache is not None:
                cache.batch_repeat_interleave(batch.rows)
            model.forward_tokens -= batch.ids.numel() * layer // len(blocks)  # count only the blocks that run
            with hooked([Edit(blocks[layer], "input", lambda x: start_rows)]):
                return forward(model, tail, cache=cache)

    def _head_once(self, prefix: Tensor, cache: object) -> None:
        """Run the prefix for its keys and values; its logits are not needed, so the head sees one token."""
        head = self.model.hf.get_submodule(self.model.sites.head)
        with torch.inference_mode(), hooked([Edit(head, "input", lambda x: x[:, -1:])]):
            call(self.model, prefix, cache, use_cache=True)
