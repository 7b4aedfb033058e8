"""What fits into a model: the tokens that its embedding has, and as many in a row as its context
holds.

A learned position past the end is an error of the device; rotary ones go on, and the model silently
writes worse.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from refusal.core.errors import ModelLoadError, PromptError

# Names of the number of positions that are not mapped to transformers' own, the first.
POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_target_positions",
)
# Their state is of one size however much was read; a number of positions is what they were trained
# with.
RECURRENT = frozenset(("rwkv", "mamba", "mamba2", "falcon_mamba", "xlstm"))
STRETCHED = frozenset(
    ("linear", "dynamic")
)  # rotary scalings that a config gives beside the length before them
SHOWN = 40  # characters of a token


def context_length(config: PreTrainedConfig) -> int | None:
    """How many tokens a model can read and write in all; ``None`` where nothing limits them
    (recurrent, ALiBi).

    Rotary scalings are given beside the length before them (linear, dynamic), beside that after
    them (llama3), or either way with the original length (yarn). A sliding window limits what a
    token sees, not how long a row may be.
    """
    text = config.get_text_config()
    if text.model_type in RECURRENT:
        return None
    found = (getattr(text, name, None) for name in POSITIONS)
    limit = next(
        (n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0), None
    )
    if limit is None:
        return None
    lengths = [limit]
    for scaling in _scalings(text):
        kind = scaling.get("rope_type", scaling.get("type"))
        factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings")
        if not isinstance(factor, (int, float)) or factor <= 0:
            continue
        if isinstance(original, int) and original > 0:
            lengths.append(int(original * factor))
        elif kind in STRETCHED or kind == "yarn":
            lengths.append(int(limit * factor))
    return max(lengths)


def check_rows(
    model: Any, rows: Sequence[Sequence[int]], new_tokens: int = 0, names: Sequence[str] = ()
) -> None:
    """Make sure that a model has all tokens of ``rows``, and room for each and ``new_tokens`` more.

    Args:
        model: a ``LoadedModel``.
        names: of the rows, for the message.

    Raises:
        PromptError: one is too long.
        ModelLoadError: a token that the embedding does not have.
    """
    check_ids(model.tokenizer, rows, vocabulary(model.hf), model.name)
    context = context_length(model.hf.config)
    if context is None or not rows:
        return
    i = max(range(len(rows)), key=lambda i: len(rows[i]))
    n = len(rows[i])
    if n + new_tokens <= context:
        return
    who = f"The prompt {names[i]!r}" if names else "A prompt"
    more = (
        f", and {n + new_tokens:,} with the {new_tokens:,} that are to be written"
        if new_tokens
        else ""
    )
    mend = "Leave it out or shorten it" + (
        ", or have less written (--max-new-tokens)." if new_tokens else "."
    )
    raise PromptError(
        f"{who} has {n:,} tokens{more}; {model.name} holds {context:,} in all. {mend}"
    )


def check_ids(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], vocabulary: int, name: str
) -> None:
    """Raise ModelLoadError if a token of ``rows`` is not among the model's."""
    for row in rows:
        if row and not 0 <= (worst := max(row)) < vocabulary:
            token = str(tokenizer.convert_ids_to_tokens(worst))[:SHOWN]
            raise ModelLoadError(
                f"The tokenizer of {name} gives the token {token!r} the id {worst}, and the "
                f"model's embedding has {vocabulary} rows. Give the tokenizer that belongs to the "
                "model."
            )


def check_special_ids(config: PreTrainedConfig, name: str) -> None:
    """Raise ModelLoadError if a special token that the config names is not among the model's."""
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        size = getattr(config.get_text_config(), "vocab_size", None)
        for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(part, key, None)
            for index in value if isinstance(value, list) else [value]:
                if isinstance(size, int) and isinstance(index, int) and index >= size:
                    raise ModelLoadError(
                        f"The config of {name} says {key} {index}, and its vocabulary has {size} "
                        "tokens. Mend config.json, or give the model that it belongs to."
                    )


def vocabulary(hf: PreTrainedModel) -> int:
    """How many tokens the embedding has."""
    embedding: Any = hf.get_input_embeddings()
    rows = getattr(embedding, "num_embeddings", None)
    return rows if isinstance(rows, int) else int(embedding.weight.shape[0])


def _scalings(config: PreTrainedConfig) -> Iterator[dict[str, Any]]:
    """The rotary parameters, of each kind of layer where they differ."""
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(config, name, None)
        if isinstance(found, dict):
            yield found
            yield from (part for part in found.values() if isinstance(part, dict))
