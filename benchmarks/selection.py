"""Selection, paper-literal against fast: time, tokens, FLOP/s against the machine's matrix-product
rate, agreement.

    python benchmarks/selection.py                         # the embedded model, bfloat16, 32 prompts a class
    python benchmarks/selection.py --dtype float32
    python benchmarks/selection.py --shape llama-8b        # random weights: nothing qualifies by chance, no early exit
    python benchmarks/selection.py --growth                # time against candidates, prompts and prompt length

The paper-literal way is timed on a random sample of the candidates and scaled up; both run in one
process, one before and one after the other in turn.
"""

import argparse
import math
import random
from dataclasses import replace

import torch
from machine import flop_per_token, get_model, head_flop, matmul_rate, peak_memory, seconds
from naive import Naive

from refusal import (
    Candidates,
    CandidateScore,
    ChatModel,
    Prompt,
    PromptPair,
    RefusalTokens,
    Rule,
    Selection,
    choose,
    collect,
    difference_in_means,
    load_prompts,
    select,
)
from refusal.cli.progress_bars import reporting
from refusal.directions.pool import draw_passing
from refusal.directions.selection.score import Scorer
from refusal.directions.selection.search import SCORES, Candidate, Search
from refusal.directions.selection.select import HowToSearch
from refusal.model.forward import last_logits

STEP = 4  # of the layers, where growth is measured


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--shape", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", default="builtin")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument(
        "--sample",
        type=float,
        default=0.1,
        help="share of the candidates timed the paper-literal way",
    )
    parser.add_argument("--rounds", type=int, default=2, help="times that both ways take turns")
    parser.add_argument(
        "--bootstrap", action="store_true", help="also time a selection with its bootstrap"
    )
    parser.add_argument("--risk", type=float, default=0.0, help="also time it at this risk")
    parser.add_argument(
        "--growth", action="store_true", help="time against candidates, prompts and prompt length"
    )
    options = parser.parse_args()
    with reporting():
        model = get_model(options.model, options.shape, options.dtype, options.device)
        loaded = peak_memory(model.device)
        candidates, pair, rule = prepare(model, options)
        if options.growth:
            growth(model, candidates, pair)
        else:
            compare(model, candidates, pair, rule, options, loaded)


def prepare(model: ChatModel, options: argparse.Namespace) -> tuple[Candidates, PromptPair, Rule]:
    """Candidates, and validation prompts that passed the filter."""
    prompts = load_prompts(options.prompts, data_dir=options.data_dir)
    if options.shape is not None:
        tokens = RefusalTokens((40,), ("?",), source="random model")
        shape = (len(model.chat.suffix), model.sites.n_layers, model.sites.d_model)
        vectors = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        pair = PromptPair(prompts.val.harmful[: options.n], prompts.val.harmless[: options.n])
        return Candidates(vectors, tokens, model.name), pair, Rule(-math.inf, math.inf)
    activations = collect(model, prompts.train, n=128)
    assert activations.tokens is not None
    tokens = activations.tokens
    kept = {
        label: draw_passing(model, getattr(prompts.val, label), label, tokens, options.n).prompts
        for label in ("harmful", "harmless")
    }
    return difference_in_means(activations), PromptPair(kept["harmful"], kept["harmless"]), Rule()


def compare(
    model: ChatModel,
    candidates: Candidates,
    pair: PromptPair,
    rule: Rule,
    options: argparse.Namespace,
    loaded: int,
) -> None:
    """Both ways in turn, and what each costs."""
    places = [
        (p, layer)
        for p in range(-candidates.n_positions, 0)
        for layer in range(candidates.n_layers)
    ]
    sample = random.Random(0).sample(places, max(2, round(options.sample * len(places))))
    rate = matmul_rate(model, model.token_budget.value)
    found: list[Selection] = []
    scores: list[CandidateScore] = []

    def run_fast(resamples: int = 0, risk: float = 0.0) -> None:
        how = HowToSearch(resamples=resamples, risk=risk)
        found.append(select(model, candidates, pair, filtered=False, rule=rule, how=how))

    assert candidates.tokens is not None
    naive = Naive(
        model,
        [p.text for p in pair.harmful],
        [p.text for p in pair.harmless],
        candidates.tokens.ids,
    )
    last_logits(model, ["Hello", "Who are you?"])  # the packing check is not selection's cost

    def run_naive(part: list[tuple[int, int]]) -> None:
        scores.extend(naive.score(candidates.at(*place)) for place in part)

    naive.forward_tokens = 0
    slow, fast = 0.0, []
    for turn in range(options.rounds):
        model.forward_tokens = 0
        fast.append(seconds(run_fast, model.device))
        fast_tokens, fast_peak = model.forward_tokens, peak_memory(model.device)
        part = sample[turn :: options.rounds]
        slow += seconds(lambda part=part: run_naive(part), model.device)  # type: ignore[misc]
    scale = len(places) / len(sample)
    model.forward_tokens = 0
    risky = None
    if options.risk:
        risky = seconds(lambda: run_fast(risk=options.risk), model.device)
    risky_tokens, with_risk = model.forward_tokens, found[-1].score
    fast_mean = sum(fast) / len(fast)
    firm = seconds(lambda: run_fast(1000), model.device) if options.bootstrap else None

    per_token, head = flop_per_token(model), head_flop(model)
    slow_flop = naive.forward_tokens * (per_token + head)
    fast_flop = fast_tokens * per_token  # its head sees the last tokens only: not counted
    print(f"{model.name}, {model.hf.dtype}, {model.device}; {len(places)} candidates, "
          f"{len(pair.harmful)} harmful and {len(pair.harmless)} harmless prompts; "
          f"paper-literal timed on {len(sample)} candidates, scaled by {scale:.1f}")  # fmt: skip
    print(
        f"matrix products of a block at {model.token_budget.value} tokens: {rate / 1e9:.0f} GFLOP/s"
    )
    print(f"{'':14}{'seconds':>10}{'tokens':>12}{'GFLOP/s':>10}{'of rate':>9}")
    for name, time, tokens, flop in (
        ("paper-literal", slow * scale, naive.forward_tokens * scale, slow_flop * scale),
        ("fast", fast_mean, fast_tokens, fast_flop),
    ):
        print(
            f"{name:14}{time:10.1f}{tokens:12.0f}{flop / time / 1e9:10.0f}{flop / time / rate:9.0%}"
        )
    print(f"ratio {slow * scale / fast_mean:.1f} (fast runs: "
        f"{', '.join(f'{t:.1f} s' for t in fast)}); "
          "with the bootstrap's extra scores "
          f"{'not timed' if firm is None else f'{firm:.1f} s'}")  # fmt: skip
    if risky is not None:
        same = (with_risk.position, with_risk.layer) == (
            found[0].score.position,
            found[0].score.layer,
        )
        print(
            f"at risk {options.risk:g}: {risky:.1f} s, {risky_tokens} tokens, "
            f"{risky_tokens * per_token / risky / 1e9:.0f} GFLOP/s, ratio "
            f"{slow * scale / risky:.1f}, {'the same' if same else 'ANOTHER'} choice"
        )
    print(f"peak memory {fast_peak / 1e9:.2f} GB, after loading {loaded / 1e9:.2f} GB")
    agree(model, candidates, pair, rule, found[0], scores)


def agree(
    model: ChatModel,
    candidates: Candidates,
    pair: PromptPair,
    rule: Rule,
    found: Selection,
    scores: list[CandidateScore],
) -> None:
    """Whether all three scores of the sampled candidates are the same by the fast way, and the
    choice among them.
    """
    tokens = candidates.tokens
    harmful, harmless = (
        draw_passing(model, prompts, prompts[0].label, tokens, None, filtered=False)
        for prompts in (pair.harmful, pair.harmless)
    )
    contenders = [Candidate(candidates.at(s.position, s.layer)) for s in scores]
    search = Search(
        Scorer(model, harmful, harmless, tokens, candidates.n_layers),
        contenders,
        candidates.n_layers,
    )
    search.run(rule, everything=True)
    for name in SCORES:
        gaps = [
            abs(getattr(a, name) - getattr(b, name))
            for a, b in zip(search.scores(), scores, strict=True)
        ]
        print(f"{name}: {len(gaps)} scores compared, largest difference {max(gaps):.2g}")
    winner = found.score
    better = [s for s in scores if choose([winner, s], candidates.n_layers, **vars(rule)) is s]
    print(f"choice ({winner.position}, {winner.layer}), bypass {winner.bypass:+.3f}; "
          f"{len(better)} of the sample would beat it by the paper-literal scores")  # fmt: skip
    if (winner.position, winner.layer) not in {(s.position, s.layer) for s in scores}:
        print("(the winner is not in the sample)")


def growth(model: ChatModel, candidates: Candidates, pair: PromptPair) -> None:
    """Time of a full map (no early exit) of every fourth layer while one size grows."""
    everything = Rule(-math.inf, math.inf)

    def time(c: Candidates, p: PromptPair) -> tuple[float, int]:
        model.forward_tokens = 0
        taken = seconds(
            lambda: select(
                model,
                c,
                p,
                filtered=False,
                rule=everything,
                how=HowToSearch(full_map=True, layer_step=STEP, resamples=0),
            ),
            model.device,
        )
        return taken, model.forward_tokens

    def cut(n: int) -> PromptPair:
        return PromptPair(pair.harmful[:n], pair.harmless[:n])

    def longer(prompts: tuple[Prompt, ...], times: int) -> tuple[Prompt, ...]:
        return tuple(replace(p, text=" ".join([p.text] * times)) for p in prompts)

    last = Candidates(candidates.vectors[-1:], candidates.tokens, candidates.model)
    print(
        f"{'candidates':>12}{'prompts':>10}{'length':>8}{'seconds':>10}{'tokens':>10}{'tokens/s':>10}"
    )
    rows = [
        (1, 16, 1),
        (2, 16, 1),
        (4, 16, 1),
        (1, 8, 1),
        (1, 32, 1),
        (1, 16, 2),
        (1, 16, 4),
        (1, 16, 8),
    ]
    for positions, n, times in rows:
        c = (
            last
            if positions == 1
            else Candidates(candidates.vectors[-positions:], candidates.tokens, candidates.model)
        )
        p = cut(n)
        p = PromptPair(longer(p.harmful, times), longer(p.harmless, times))
        taken, tokens = time(c, p)
        count = positions * len(range(0, c.n_layers, STEP))
        print(f"{count:12}{n:10}{times:7}x{taken:10.1f}{tokens:10}{tokens / taken:10.0f}")


if __name__ == "__main__":
    main()
