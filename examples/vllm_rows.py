"""Ablation, addition and subtraction inside vLLM: each request its own, side by side in a batch.

    refusal export runs/model --as direction --out direction.safetensors
    PYTHONPATH=examples vllm serve owner/model --load-format refusal \
        --logits-processors vllm_rows:Rows --no-enable-prefix-caching \
        --additional-config '{"refusal": "direction.safetensors"}'

and in each request `"vllm_xargs": {"refusal": "ablation"}`, or `addition`, `subtraction`, one with
a strength (`ablation@0.5`), or nothing.

vLLM pins another transformers than this package needs, so the two do not share an environment: this
file needs vLLM's alone. What it hangs on, of vLLM 0.32.0:

- a model loader (``register_model_loader``) puts hooks where a block writes to the stream and where
  the direction is added, before the model is compiled, so that they are in the graph;
- a logits processor of vLLM's first model runner is told which row of a batch asks for what;
- a hook around the whole model, which is not compiled, spreads that over tokens before each pass,
  by where each row's tokens begin. That is read from the metadata of attention, which is no public
  interface.

docs/engines.md has what came out, and what is refused here because it would be wrong silently.
"""

import dataclasses
from typing import Any

import torch
from safetensors import safe_open
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

NAME = "refusal"  # of the load format, of a request's argument and of the configuration's entry
# What their blocks write goes onto the stream as it is, without a norm behind it. All compared.
COMPARED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
NOTHING = (0.0, 0.0)

asked: dict[int, tuple[float, float]] = {}  # row of the batch: share taken out, times added


def shares(params: SamplingParams) -> tuple[float, float]:
    """What a request asks for: the share to take out, and how many times to add the direction.

    Raises:
        ValueError: no such condition.
    """
    condition = str((params.extra_args or {}).get(NAME, "baseline"))
    name, _, strength = condition.partition("@")
    by = float(strength or 1)
    known = {
        "baseline": NOTHING,
        "ablation": (by, 0.0),
        "addition": (0.0, by),
        "subtraction": (0.0, -by),
    }
    if name not in known:
        raise ValueError(f"There is no condition {condition!r}. Use one of: {', '.join(known)}.")
    return known[name]


class Rows(LogitsProcessor):
    """Changes no logits; it is told which request is in which row."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ValueError where a request asks for what there is not."""
        shares(sampling_params)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        asked.clear()

    def is_argmax_invariant(self) -> bool:
        """It is left out of greedy sampling."""
        return True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits as they are."""
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows of a batch, before each pass: removed, then added, then moved."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            asked.pop(row, None)
        for row, params, _, _ in batch_update.added:
            asked[row] = shares(params)
        for one, other, how in batch_update.moved:
            here, there = asked.pop(one, NOTHING), asked.pop(other, NOTHING)
            asked[other] = here
            if how == MoveDirectionality.SWAP:
                asked[one] = there


@register_model_loader(NAME)
class Loader(DefaultModelLoader):
    """Loads a checkpoint as vLLM does, then puts the hooks on."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(dataclasses.replace(load_config, load_format="auto"))

    def load_model(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> torch.nn.Module:
        """The model with hooks.

        Raises:
            ValueError: a model, or a way of serving it, for which they would be wrong.
        """
        check(vllm_config)
        model = super().load_model(vllm_config, *args, **kwargs)
        attach(model, vllm_config)
        return model


def check(config: VllmConfig) -> None:
    """Raise ValueError where rows would get what they did not ask for, without an error."""
    found = config.model_config.architectures
    if not set(found) <= set(COMPARED):
        raise ValueError(f"{found} was not compared with hooks; these were: {COMPARED}.")
    if config.cache_config.enable_prefix_caching:
        raise ValueError(
            "A prefix that was read under one condition would be used under another: "
            "--no-enable-prefix-caching."
        )
    if config.compilation_config.cudagraph_mode.has_full_cudagraphs():
        raise ValueError(
            "A graph of the whole model would replay the conditions that it was recorded with: "
            """--compilation-config '{"cudagraph_mode": "PIECEWISE"}'."""
        )
    if config.parallel_config.pipeline_parallel_size > 1 or config.parallel_config.use_ubatching:
        raise ValueError("Parts of a batch or of the model would run apart: no pipelines.")
    if NAME not in config.additional_config:
        raise ValueError(f"""--additional-config '{{"{NAME}": "direction.safetensors"}}' is due.""")


def attach(model: torch.nn.Module, config: VllmConfig) -> None:
    """Put the hooks on, all of which read the same few buffers."""
    with safe_open(config.additional_config[NAME], "pt") as file:
        kept, told = set(file.keys()), file.metadata()
        step = file.get_tensor("direction").float() * float(told["norm"])
        rows = file.get_tensor("basis" if "basis" in kept else "direction").float()
    device = next(model.parameters()).device
    longest = config.scheduler_config.max_num_batched_tokens
    buffers = {
        "refusal_rows": rows.view(-1, step.shape[0]).to(device),  # [rank, d_model], orthonormal
        "refusal_step": step.to(device),  # [d_model]
        "refusal_taken": torch.zeros(longest, 1, device=device),  # of each token
        "refusal_added": torch.zeros(longest, 1, device=device),
    }

    def project(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        x, q = out.float(), module.refusal_rows
        return (x - module.refusal_taken[: x.shape[0]] * (x @ q.T @ q)).to(out.dtype)

    def add(module: Any, args: Any) -> Any:
        positions, hidden, *rest = args  # the stream is hidden, or the sum of hidden and the next
        more = module.refusal_added[: hidden.shape[0]] * module.refusal_step
        return positions, (hidden.float() + more).to(hidden.dtype), *rest

    def spread(module: Any, args: Any, kwargs: Any) -> None:
        for name in ("refusal_taken", "refusal_added"):
            buffers[name].zero_()
        metadata = get_forward_context().attn_metadata
        if not metadata:  # a pass that measures memory, or compiles
            return
        starts = next(iter(metadata.values())).query_start_loc.cpu()
        counts, found = starts.diff(), [asked.get(row, NOTHING) for row in range(len(starts) - 1)]
        by_token = torch.tensor(found).repeat_interleave(counts, dim=0)  # [token, 2]
        buffers["refusal_taken"][: len(by_token)] = by_token[:, :1].to(device)
        buffers["refusal_added"][: len(by_token)] = by_token[:, 1:].to(device)

    inner = model.model
    block = inner.layers[int(told["layer"])]
    writers = [part for layer in inner.layers for part in (layer.self_attn, layer.mlp)]
    for module in (inner.embed_tokens, *writers, block):
        for name, buffer in buffers.items():
            module.register_buffer(name, buffer, persistent=False)
    for module in (inner.embed_tokens, *writers):
        module.register_forward_hook(project)
    block.register_forward_pre_hook(add)
    model.register_forward_pre_hook(spread, with_kwargs=True)
