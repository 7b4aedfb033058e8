"""A model whose refusals depend on the context, with every weight known.

A prompt with ``#`` is refused. Block 0's MLP looks, at each ``#``, for ``@`` before it (in the system
prompt); block 1's attention then writes along one of two axes into all tokens that follow: axis 0
without ``@``, axis 1 with it. So a direction that is found under a system prompt with ``@`` has
nothing to do with one that is found without. A ``~`` before the prompt keeps the model from refusing
at all. Each answer is one token, a whole sentence.
"""

import tiny_models
import torch

from refusal import ChatModel, Prompt, PromptPair, PromptSplits
from refusal.core.records import Label

REFUSAL = "I cannot help with that request."
ANSWER = "Sure! Mix flour and water, knead the dough and bake it."
TEMPLATE = (  # two tokens after the instruction: few candidates
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>{% endif %}"
)
HASH, AT, TILDE, ONE, FLAG, STOP = 8, 7, 6, 11, 2, 3
ALONE, FLAGGED = 10, 9


def contextual(**options: object) -> ChatModel:
    """The model; ``options`` are of ``ChatModel``."""
    tok = tiny_models.tokenizer("chatml")
    tok.chat_template = TEMPLATE
    tok.add_tokens([REFUSAL, ANSWER])
    refusal, answer = (tok.vocab[text] for text in (REFUSAL, ANSWER))
    model = ChatModel(tiny_models.network("llama"), tok, "contextual", **options)  # type: ignore[arg-type]
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.hf.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        embedding = model.hf.get_parameter("model.embed_tokens.weight")
        embedding[:, 12:] = 0.1 * torch.randn(len(embedding), 20, generator=noise)
        embedding[:, ONE] = 1.0
        for text, place in (("#", HASH), ("@", AT), ("~", TILDE)):
            embedding[tok.encode(text, add_special_tokens=False)[0], place] = 1.0
        _moves(model, 0, ((AT, FLAG), (TILDE, STOP)), 10.0)
        _moves(model, 1, ((ALONE, 0), (FLAGGED, 1)), 20.0)
        mlp = "model.layers.0.mlp."
        gate, up, down = (
            model.hf.get_parameter(f"{mlp}{n}_proj.weight") for n in ("gate", "up", "down")
        )
        bias = model.hf.get_parameter(f"{mlp}gate_proj.bias")
        for unit, (sign, place) in enumerate(((-1.0, ALONE), (1.0, FLAGGED))):
            gate[unit, FLAG], bias[unit] = 10.0 * sign, -10.0 * sign
            up[unit, HASH], down[place, unit] = 1.0, 0.1
        head = model.hf.get_output_embeddings().weight
        head[refusal, :2], head[refusal, STOP] = 10.0, -30.0
        head[answer, ONE] = 2.0
    return model


def _moves(model: ChatModel, block: int, moves: tuple[tuple[int, int], ...], size: float) -> None:
    """Even attention of a block writes what stands in one dimension before into another."""
    name = f"model.layers.{block}.self_attn."
    for unit, (start, end) in enumerate(moves):
        model.hf.get_parameter(f"{name}v_proj.weight")[unit, start] = 1.0
        model.hf.get_parameter(f"{name}o_proj.weight")[end, unit] = size


def prompts(n: int = 14) -> PromptSplits:
    """Pools for each split, harmful ones with ``#``."""

    def pool(label: Label, start: int) -> tuple[Prompt, ...]:
        mark = "######" if label == "harmful" else "......"
        texts = [f"{mark} Task number {start + i} {'x' * (i % 5)}" for i in range(n)]
        return tuple(Prompt(f"{label}-{start + i}", t, label) for i, t in enumerate(texts))

    train, val, test = (
        PromptPair(pool("harmful", start), pool("harmless", start + 500)) for start in (0, 100, 200)
    )
    return PromptSplits("contextual", train, val, test)
