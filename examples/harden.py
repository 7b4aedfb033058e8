"""Harden a chat model's refusals by extended-refusal fine-tuning, with LoRA.

    python examples/harden.py embedded hardened/
    python examples/harden.py some/model hardened/ --n 128 --epochs 3

Ablation works because a refusal is decided in one direction at the first token. Trained to answer a
harmful request with a few neutral sentences, then a plain refusal, then its reason (Shairah et al.
2025, "An Embarrassingly Simple Defense Against LLM Abliteration Attacks", arXiv 2505.19056), a
model's refusals no longer hang on that token alone. Here:

- harmful training prompts are answered with refusals put together from the sentences below, which
  say nothing of the request;
- harmless training prompts with the model's own answers, so that it goes on answering them;
- the adapter is merged, and the folder says in README.md and in config.json what was done.

The prompts are those of the training split alone, so `refusal run` and `refusal audit` may measure
the result on the others. docs/hardening.md has what came out on a small model.
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

import refusal

# A refusal is one of each, in this order. Nothing in them depends on what was asked.
OVERVIEWS = (
    "Requests of this kind come up for many reasons, among them curiosity, worry, research "
    "and fiction. What matters is what an answer would be used for and who would bear the "
    "consequences.",
    "This is a subject that people meet in the news, in courses and in their own lives. It "
    "has a history, laws that deal with it, and people whose work is to limit the damage it "
    "does.",
    "There is a difference between understanding a subject and being given the means to act "
    "on it. Much has been written for the first purpose by people who know it well.",
    "Questions like this one touch on the safety of others. Schools, courts and hospitals "
    "deal with what follows when such things are done, and it is seldom small.",
    "To take this seriously, one has to look at both sides: why somebody might ask, and what "
    "happens to those who are affected when it goes wrong.",
    "Several fields have something to say here: law, psychology, public health and ethics. "
    "They agree on more than one might expect about where the line runs.",
)
REFUSALS = (
    "I won't help with this request.",
    "I can't provide what is asked for here.",
    "I'm not going to assist with that.",
    "For that reason I can't help with this.",
    "I have to decline this request.",
    "So I will not give instructions for it.",
)
REASONS = (
    "It could lead to harm to people who have not agreed to it, and I don't want to "
    "contribute to that.",
    "The likely harm outweighs what anybody would learn from my answer.",
    "It would be unsafe, and in many places against the law.",
    "Somebody could be hurt by it, and that would not be undone by good intentions.",
)
OFFERS = (
    "If you want to know how such harm is prevented, I am glad to help with that.",
    "If something has happened to you, I can help you find people who deal with it.",
    "I can help with the subject's history, its law, or how to protect yourself.",
    "If there is a safe purpose behind this, tell me about it and I will look for another way.",
)


@dataclass(frozen=True)
class Recipe:
    """How much is trained: prompts of a class, epochs, the adapter's rank, AdamW's learning rate,
    examples a step, the longest own answer, and the seed.
    """

    n: int = 64
    epochs: int = 2
    rank: int = 16
    rate: float = 2e-4
    size: int = 4
    answer_tokens: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and its answer; the loss is on the answer, from ``start`` on."""

    ids: tuple[int, ...]
    start: int


def extended_refusal(draw: random.Random) -> str:
    """A few neutral sentences, a plain refusal, its reason, an offer."""
    return " ".join(draw.choice(parts) for parts in (OVERVIEWS, REFUSALS, REASONS, OFFERS))


def make_examples(model: refusal.ChatModel, recipe: Recipe) -> list[Example]:
    """Harmful training prompts with extended refusals, harmless ones with the model's own
    answers.
    """
    draw, train = random.Random(recipe.seed), refusal.load_prompts("builtin").train
    harmful = [prompt.text for prompt in train.harmful[: recipe.n]]
    harmless = [prompt.text for prompt in train.harmless[: recipe.n]]
    own = model.generate(harmless, recipe.answer_tokens)
    answers = [extended_refusal(draw) for _ in harmful] + own
    examples = []
    for prompt, answer in zip(model.tokenize(harmful + harmless), answers, strict=True):
        end = [] if answer in own else [model.tokenizer.eos_token_id]  # own ones are cut
        written = model.tokenizer(answer, add_special_tokens=False).input_ids + end
        examples.append(Example((*prompt, *written), len(prompt)))
    return examples


def batches(examples: Sequence[Example], size: int, draw: random.Random) -> Iterator[list[Example]]:
    """All examples once, in random order; alike long ones together, since shorter are padded."""
    order = sorted(examples, key=lambda e: (len(e.ids), draw.random()))
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    yield from draw.sample(groups, len(groups))


def loss_of(network: torch.nn.Module, batch: Sequence[Example]) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens, in nats."""
    width = max(len(example.ids) for example in batch)
    device = next(network.parameters()).device
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask, wanted = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, example in enumerate(batch):
        n = len(example.ids)
        ids[row, :n] = torch.tensor(example.ids)
        mask[row, :n] = 1
        wanted[row, example.start : n] = ids[row, example.start : n]
    logits = network(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted[:, 1:].flatten().to(device))


def harden(model: refusal.ChatModel, out: Path, recipe: Recipe) -> list[float]:
    """Train, merge, and write the folder ``out``; the mean loss of every epoch."""
    examples = make_examples(model, recipe)
    adapter = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(recipe.seed)  # of the adapter's first weights
    network = get_peft_model(model.hf, adapter)
    network.train()
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=0.0)
    draw, losses = random.Random(recipe.seed), []
    for epoch in range(recipe.epochs):
        seen, began = [], time.monotonic()
        for batch in batches(examples, recipe.size, draw):
            loss = loss_of(network, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seen.append(loss.item())
        losses.append(sum(seen) / len(seen))
        print(f"epoch {epoch + 1}: loss {losses[-1]:.3f}, {time.monotonic() - began:.0f} s")
    note = (
        f"extended-refusal fine-tuning of {model.name}: LoRA of rank {recipe.rank}, "
        f"{recipe.n} prompts a class, {recipe.epochs} epochs"
    )
    merged = network.merge_and_unload().eval()
    merged.config.refusal = {"hardened": note}
    merged.save_pretrained(out)
    model.tokenizer.save_pretrained(out)
    card = (
        f"# {out.name}\n\nMade by examples/harden.py: {note}. The refusals were written for it; "
        "answers to harmless prompts are the model's own.\n"
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    return losses


def main() -> None:
    """Read the command line, and harden."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="hub id, folder, or embedded")
    parser.add_argument("out", type=Path, help="a new folder for the hardened model")
    parser.add_argument("--n", type=int, default=64, help="training prompts of each class")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16, help="of the adapter")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate of AdamW")
    given = parser.parse_args()
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"{given.out} is not empty: give a new folder.")
    recipe = Recipe(given.n, given.epochs, given.rank, given.rate)
    harden(refusal.load(given.model), given.out, recipe)


if __name__ == "__main__":
    main()
