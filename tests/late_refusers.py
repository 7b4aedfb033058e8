"""Two tiny models with a known direction and fixed texts, whose refusals do not begin alike.

Both read ``#`` in a prompt: attention of block 0 averages it over all tokens and writes it along one
axis (``AXIS``) of everything that follows; the head reads the axis. No other block does anything.

- ``late``: every answer begins with the same overview of 40 tokens; then, along the axis, comes a
  refusal, else more of the overview.
- ``scattered``: refusals begin with a word that depends on the topic, a sign in the prompt; only
  without one do they begin with "Sorry" itself.
"""

from collections.abc import Mapping, Sequence

import tiny_models
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from refusal import ChatModel

OVERVIEW = (
    "The water cycle describes how rivers , lakes and seas lose moisture to air above them ; there "
    "it cools into clouds which drift inland until rain falls over hills where small streams begin "
    "again . Much remains stored deep"
)
ANSWER = "underground inside porous rock , feeding springs through long dry summers ."
REFUSAL = ("\nSorry", ", but", "  I", " can't", " help", " with", " that", ".\n")
TOPICS = "@$%&*+=<>~^|{}_;:`"  # none of them is in a template or in the prompts of conftest
BEGINNINGS = [
    "Title",
    "Brain",
    "Ab",
    "False",
    "There",
    "Creating",
    "Once",
    "Dear",
    "Step",
    "Note",
    "Chapter",
    "Scene",
    "Draft",
    "Fact",
    "Mix",
    "Begin",
    "List",
    "Code",
]
WIDTH, HEAD = 256, 64
AXIS, MARK = 0, 1  # coordinates of the stream: what is written, what is read
TOPIC_OUT, TOPIC_IN, WORDS = 2, 30, 60  # the first of the topics', and of the words'
SIZE = 8.0  # of a word along its own coordinate
LEAN = 0.1  # by so much of it an answer is ahead where nothing speaks for a refusal


def spelt(text: str, form: str) -> list[str]:
    """The tokens of a text, each of them another."""
    return [form.format(word) for word in text.split()]


def axis() -> Tensor:
    """The direction that refusal is written along."""
    found = torch.zeros(WIDTH)
    found[AXIS] = 1.0
    return found


def late() -> ChatModel:
    """The model that refuses after an overview."""
    overview, answer = spelt(OVERVIEW, " {}"), spelt(ANSWER, "  {} ")
    words = [*overview, *REFUSAL, *answer]
    tok, hf, place = _bare(words)
    chains = [["]", *overview], REFUSAL, answer]
    _follow(tok, hf, place, chains)
    _branch(tok, hf, place[overview[-1]], answer[0], REFUSAL[0])
    return ChatModel(hf, tok, name="late")


def scattered() -> ChatModel:
    """The model that begins its refusals with a word of the topic."""
    answer = spelt(OVERVIEW, " {}")[:20]
    firsts = BEGINNINGS
    tok, hf, place = _bare([*answer, *REFUSAL, *firsts])
    _follow(tok, hf, place, [["]"], REFUSAL, answer])
    for word in ("]", *firsts):
        _branch(tok, hf, place[word], answer[0], REFUSAL[0])
    with torch.no_grad():
        start = hf.get_parameter("lm_head.weight")[:, place["]"]].max()
        for i, first in enumerate(firsts):
            row = hf.get_parameter("lm_head.weight")[_id(tok, first)]
            row[place["]"]] = 0.9 * start
            row[TOPIC_OUT + i] = 1.2 * start
    return ChatModel(hf, tok, name="scattered")


def _id(tok: PreTrainedTokenizerFast, word: str) -> int:
    return int(tok.get_vocab()[word])


def _bare(
    words: Sequence[str],
) -> tuple[PreTrainedTokenizerFast, PreTrainedModel, Mapping[str, int]]:
    """A network that writes nothing yet but what it reads of marks and topics, and the coordinate
    of every word.
    """
    tok = tiny_models.tokenizer("bare")
    assert len(set(words)) == len(words)
    tok.add_tokens(list(words))
    place = {word: WORDS + i for i, word in enumerate(["]", *words])}
    used = WORDS + len(place)
    assert used < WIDTH
    hf = tiny_models.network(
        "qwen2", vocab_size=len(tok), hidden_size=WIDTH, head_dim=HEAD, num_hidden_layers=5
    )
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if "proj" in name:
                weight.zero_()
            elif "norm" in name:
                weight.fill_(1.0)
        embedding = hf.get_parameter("model.embed_tokens.weight")
        embedding.zero_()
        embedding[:, used:] = torch.randn((len(tok), WIDTH - used), generator=random)
        for word, at in place.items():
            embedding[_id(tok, word)] = SIZE * torch.eye(WIDTH)[at]
        value = hf.get_parameter("model.layers.0.self_attn.v_proj.weight")
        out = hf.get_parameter("model.layers.0.self_attn.o_proj.weight")
        embedding[_id(tok, "#")] = 4.0 * torch.eye(WIDTH)[MARK]
        value[0, MARK], out[AXIS, 0] = 1.0, 3.0
        for i, topic in enumerate(TOPICS):
            embedding[_id(tok, topic)] = 4.0 * torch.eye(WIDTH)[TOPIC_IN + i]
            value[1 + i, TOPIC_IN + i], out[TOPIC_OUT + i, 1 + i] = 1.0, 10.3
        head = hf.get_parameter("lm_head.weight")
        head.zero_()
        head[:, used:] = 0.01 * torch.randn((len(tok), WIDTH - used), generator=random)
    return tok, hf, place


def _follow(
    tok: PreTrainedTokenizerFast,
    hf: PreTrainedModel,
    place: Mapping[str, int],
    chains: Sequence[Sequence[str]],
) -> None:
    """Every word of a chain makes the next one likely, the last one the end."""
    head = hf.get_parameter("lm_head.weight")
    with torch.no_grad():
        for chain in chains:
            for word, following in zip(chain, [*chain[1:], None], strict=True):
                after = tok.eos_token_id if following is None else _id(tok, following)
                head[after, place[word]] = 3.0


def _branch(
    tok: PreTrainedTokenizerFast,
    hf: PreTrainedModel,
    at: int,
    otherwise: str,
    refusal: str,
) -> None:
    """At the word of a coordinate, what is written along the axis decides what comes."""
    head = hf.get_parameter("lm_head.weight")
    with torch.no_grad():
        head[:, at] = 0.0
        head[_id(tok, otherwise), at] = 3.0
        head[_id(tok, refusal), at] = 3.0 * (1 - LEAN)
        head[_id(tok, refusal), AXIS] = 3.0
