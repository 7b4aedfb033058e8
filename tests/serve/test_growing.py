"""Text that grows: whatever the tokens, the pieces are the whole; and what ends an answer."""

import random

import pytest
import tiny_models
from thinkers import ANSWER, BREAD, thinker
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refusal import ChatModel
from refusal.engines.serve.growing import Growing, Stops, first_of
from refusal.model.endings import read_outputs


def with_bytes() -> PreTrainedTokenizerFast:
    """Words with a space in front of them, and bytes for what there is no word of: as Llama's."""
    words = ["▁a", "▁the", "▁sea", "b", "▁", "€", "é"]
    special = list(tiny_models.SPECIAL)
    names = [*special, "<unk>", *(f"<0x{i:02X}>" for i in range(256)), *words]
    vocabulary = {name: i for i, name in enumerate(names)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    core.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|eos|>")


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return tiny_models.chat_model()


@pytest.fixture(scope="module")
def by_words() -> ChatModel:
    found = tiny_models.chat_model()
    found.tokenizer = with_bytes()
    return found


def grown(model: ChatModel, tokens: list[int]) -> str:
    """The pieces, each checked to be a beginning of the whole; then what is left."""
    whole = read_outputs(model, [tokens], freely=True)[0]
    growing, text = Growing(model), ""
    for token in tokens:
        text += growing.add(token)
        assert whole.startswith(text), (whole, text)
    return text


def test_pieces_of_any_tokens_are_beginnings_of_the_whole(model: ChatModel) -> None:
    """Random bytes are mostly no characters; these wait for what follows, and nothing is taken
    back.
    """
    draw = random.Random(3)
    texts = ("naïve €", "日本語の文 ", "👩‍👩‍👧‍👦 ok", "plain ", " the sea a")
    for _ in range(60):
        tokens: list[int] = []
        while len(tokens) < 90:
            text = draw.choice(texts)
            tokens += model.tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens += [draw.randrange(5, 260) for _ in range(draw.randrange(3))]
        told = grown(model, tokens)
        whole = read_outputs(model, [tokens], freely=True)[0]
        assert set(whole[len(told) :]) <= {"\ufffd"}


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_text_without_broken_characters_is_told_at_once(
    kind: str, model: ChatModel, by_words: ChatModel
) -> None:
    one = model if kind == "bytes" else by_words
    text = "the sea: naïve €, 日本語の文, 👩‍👩‍👧‍👦. " * 8
    tokens = list(one.tokenizer(text, add_special_tokens=False)["input_ids"])
    assert grown(one, tokens) == read_outputs(one, [tokens], freely=True)[0]


def test_a_long_text_is_not_decoded_again_and_again(model: ChatModel) -> None:
    growing = Growing(model)
    for token in model.tokenizer("The sea is wide. " * 100, add_special_tokens=False)["input_ids"]:
        growing.add(token)
        assert len(growing.tokens) - growing.start <= 40


def test_thoughts_are_told_as_they_will_be_read() -> None:
    model = thinker("qwen3")
    tokens = [int(i) for i in model.tokenizer(f"<think>Well.</think>\n\n{ANSWER}")["input_ids"]]
    assert BREAD not in grown(model, tokens)
    assert grown(model, tokens) == read_outputs(model, [tokens], freely=True)[0]


@pytest.mark.parametrize(
    ("stops", "pieces", "through"),
    [
        (["END"], ["one E", "N", "D two"], "one "),
        (["END"], ["one E", "N", "O"], "one ENO"),
        (["END", "\n\n"], ["a\n", "\nEND"], "a"),
        (["aab"], ["aa", "ab"], "a"),
        (["x"], ["", "x"], ""),
        ([], ["a", "b"], "ab"),
    ],
)
def test_a_text_ends_before_the_first_of_its_stops(
    stops: list[str], pieces: list[str], through: str
) -> None:
    found = Stops(stops)
    text = ""
    for piece in pieces:
        if found.found:
            break
        text += found.through(piece)
    assert text == through
    assert found.found == (first_of(stops, "".join(pieces)) is not None)


def test_stops_let_through_what_a_search_of_the_whole_would() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        stops = ["".join(draw.choices("ab", k=draw.randrange(1, 4))) for _ in range(2)]
        pieces = ["".join(draw.choices("abc", k=draw.randrange(3))) for _ in range(6)]
        found, text, whole = Stops(stops), "", ""
        for piece in pieces:
            if not found.found:
                text, whole = text + found.through(piece), whole + piece
        end = first_of(stops, whole)
        assert found.found == (end is not None)
        assert text == whole[:end] if found.found else text + found.waits == whole
