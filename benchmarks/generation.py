"""Generation: transformers' own ``generate`` against this package's, plain and under interventions;
and the conditions of a run one after the other against side by side.

    python benchmarks/generation.py                 # the embedded model, half harmful and half harmless prompts
    python benchmarks/generation.py --conditions --rows 48 --tokens 64 --run runs/demo
    python benchmarks/generation.py --shape llama-8b --device cuda

Refused prompts end early, answered ones run to the limit, as in a real run. Beside tokens per
second stands the share of the time that reading the weights once per step would take alone, at the
machine's measured memory rate. With ``--conditions`` rows are prompts of each class; beside the
time stand steps, how many rows a step had on average, and what was reached of the machine's matrix
products (on as many rows as a batch has) and of its memory rate. Random models (``--shape``) end a
turn at one of ten tokens.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from machine import flop_per_token, get_model, head_flop, matmul_rate, peak_memory, seconds

from refusal import Ablate, Add, ChatModel, Direction, load_prompts
from refusal.cli.progress_bars import reporting
from refusal.core.records import Completion
from refusal.evaluations.refusal.completions import Wanted, generate_together, generate_under
from refusal.interventions.conditions import CONDITIONS
from refusal.model.endings import end_tokens
from refusal.model.generation import generate
from refusal.model.hooks import Edit, hooked


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--shape", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--conditions", action="store_true", help="a run's conditions, both ways")
    parser.add_argument("--run", default=None, help="a run folder whose direction is taken")
    options = parser.parse_args()
    with reporting():
        model = get_model(options.model, options.shape, options.dtype, options.device)
        if options.shape is not None:
            assert model.hf.generation_config is not None
            vocabulary = model.hf.config.get_text_config().vocab_size
            model.hf.generation_config.eos_token_id = list(range(7, vocabulary, 10))
        if options.conditions:
            compare_conditions(model, options.rows, options.tokens, options.rounds, options.run)
        else:
            compare(model, options.rows, options.tokens, options.rounds)


def idle_direction(model: ChatModel) -> Direction:
    """One that moves nothing, so that completions have the lengths that they have without."""
    unit = torch.randn(model.sites.d_model, generator=torch.Generator().manual_seed(0))
    return Direction(unit / unit.norm(), 0.01, -1, model.sites.n_layers // 2)


def compare_conditions(
    model: ChatModel, n: int, new_tokens: int, rounds: int, run: str | None
) -> None:
    """Six conditions of ``n`` prompts a class both ways in turn; the best time of each counts."""
    file = None if run is None else Path(run) / "direction.safetensors"
    direction = idle_direction(model) if file is None else Direction.load(file)
    test = load_prompts("builtin").test
    pools = {"harmful": test.harmful[:n], "harmless": test.harmless[:n]}
    wanted = [Wanted(name, condition, direction, pools[name]) for name, condition in CONDITIONS]

    def in_turn() -> dict[str, tuple[Completion, ...]]:
        return {
            f"{one.set_name}, {one.condition}": generate_under(
                model, one.direction, one.prompts, one.condition, new_tokens, one.set_name
            )
            for one in wanted
        }

    def together() -> dict[str, tuple[Completion, ...]]:
        found: dict[str, tuple[Completion, ...]] = {}
        generate_together(
            model,
            wanted,
            new_tokens,
            lambda one, rows: found.update({f"{one.set_name}, {one.condition}": rows}),
        )
        return found

    ways = {"one after the other": in_turn, "side by side": together}
    best: dict[str, float] = {}
    counts: dict[str, tuple[int, list[int]]] = {}
    written: dict[str, dict[str, tuple[Completion, ...]]] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            before = model.forward_tokens
            with counted_steps(model) as steps:
                taken = seconds(lambda way=way, name=name: written.update({name: way()}), model.device)  # type: ignore[misc]  # fmt: skip
            best[name] = min(best.get(name, taken), taken)
            counts[name] = (model.forward_tokens - before, list(steps))
    rows = min(model.batch_size.value, 6 * n)
    products, memory = matmul_rate(model, rows), memory_rate(model)
    print(f"{model.name}, {model.hf.dtype}, {model.device}: {n} prompts a class, "
          f"{len(wanted)} conditions, at most {new_tokens} tokens each")  # fmt: skip
    print(
        f"products of {rows} rows reach {products / 1e9:.0f} GFLOP/s, memory {memory / 1e9:.1f} GB/s"
    )
    for name, taken in best.items():
        tokens, steps = counts[name]
        flop = tokens * flop_per_token(model) + sum(steps) * head_flop(model)
        read = len(steps) * weight_bytes(model)
        print(f"{name:24}{taken:8.1f} s  {tokens} tokens through the model, {len(steps)} steps of "
              f"{sum(steps) / len(steps):.0f} rows; {flop / taken / products:.0%} of the products' rate, "
              f"{read / taken / memory:.0%} of the memory's; {best['one after the other'] / taken:.2f} times as fast")  # fmt: skip
    same = [
        written["side by side"][key] == rows for key, rows in written["one after the other"].items()
    ]
    print(f"conditions with the same completions: {sum(same)} of {len(same)}")
    print(f"peak memory {peak_memory(model.device) / 1e9:.2f} GB")


@contextmanager
def counted_steps(model: ChatModel) -> Iterator[list[int]]:
    """How many rows each step had: calls with one token a row."""
    steps: list[int] = []

    def count(ids: torch.Tensor) -> None:
        if ids.shape[1] == 1:
            steps.append(ids.shape[0])

    with hooked([Edit(model.hf.get_input_embeddings(), "input", count)]):
        yield steps


def compare(model: ChatModel, rows: int, new_tokens: int, rounds: int) -> None:
    """All ways in turn, ``rounds`` times; the best time of each counts."""
    test = load_prompts("builtin").test
    texts = [p.text for pair in zip(test.harmful, test.harmless, strict=False) for p in pair][:rows]
    model.batch_size.value = rows
    direction = idle_direction(model)
    ways: dict[str, tuple[Callable[[], object], Callable[[], AbstractContextManager[object]]]] = {
        "transformers generate": (lambda: hf_generate(model, texts, new_tokens), nullcontext),
        "transformers, ablated": (
            lambda: hf_generate(model, texts, new_tokens),
            lambda: model.apply(Ablate(direction)),
        ),
        "plain": (lambda: generate(model, texts, new_tokens), nullcontext),
        "ablation": (
            lambda: generate(model, texts, new_tokens),
            lambda: model.apply(Ablate(direction)),
        ),
        "addition": (
            lambda: generate(model, texts, new_tokens),
            lambda: model.apply(Add(direction)),
        ),
    }
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, (run, around) in ways.items():
            with around():
                taken = seconds(run, model.device)
            best[name] = min(best.get(name, taken), taken)
    lengths = [len(model.tokenizer.encode(text)) for text in generate(model, texts, new_tokens)]
    rate = memory_rate(model)
    floor = new_tokens * weight_bytes(model) / rate
    print(f"{model.name}, {model.hf.dtype}, {model.device}: {len(texts)} prompts, at most "
        f"{new_tokens} tokens each; "
          f"{sum(length < new_tokens - 1 for length in lengths)} end early, {sum(lengths)} tokens "
          "in all")  # fmt: skip
    print(f"reading the weights {new_tokens} times at {rate / 1e9:.1f} GB/s takes {floor:.1f} s")
    for name, taken in best.items():
        print(f"{name:24}{taken:8.1f} s{sum(lengths) / taken:8.0f} "
            f"tokens/s{taken / best['plain']:7.2f} of plain"
              f"{floor / taken:7.0%} of it reads the weights")  # fmt: skip
    print(f"peak memory {peak_memory(model.device) / 1e9:.2f} GB")


def hf_generate(model: ChatModel, texts: list[str], new_tokens: int) -> None:
    """One batch, padded on the left; rows that have ended stay in it."""
    rows = model.tokenize(texts)
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor(
        [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device
    )
    with torch.inference_mode():
        model.hf.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False,
            eos_token_id=end_tokens(model), pad_token_id=0,
        )  # fmt: skip


def weight_bytes(model: ChatModel) -> int:
    """What a decoding step must read: all weights but the embedding, of which it reads a row a
    token.
    """
    embedding = {id(p) for p in model.hf.get_input_embeddings().parameters()}
    tied = model.hf.get_submodule(model.sites.head).weight
    return sum(
        p.numel() * p.element_size()
        for p in model.hf.parameters()
        if id(p) not in embedding or p is tied
    )


def memory_rate(model: ChatModel) -> float:
    """Bytes per second of products of all the blocks' matrices with one token: they do little but
    read.
    """
    layers = [m for m in model.hf.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {
        m.in_features: torch.randn(1, m.in_features, dtype=m.weight.dtype, device=model.device)
        for m in layers
    }

    def run() -> None:
        for layer in layers:
            layer(inputs[layer.in_features])

    with torch.inference_mode():
        run()
        best = min(seconds(run, model.device) for _ in range(3))
    return sum(m.weight.numel() * m.weight.element_size() for m in layers) / best


if __name__ == "__main__":
    main()
