"""What a run's stages depend on beside their own inputs: the model as it computes, and this
program.

A finished stage is reused only while all of this is what it was made with.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from refusal.model.chat_model import ChatModel
from refusal.model.chat_template import PROBES
from refusal.model.endings import end_tokens

# Of a config: where it comes from and who wrote it, which change nothing that is computed.
VOLATILE = frozenset(
    ("name_or_path", "_name_or_path", "_commit_hash", "transformers_version", "refusal")
)


def model_identity(model: ChatModel) -> dict[str, Any]:
    """The model as the manifest describes it: weights, config, tokenizer, template and sites, each
    as one hash.
    """
    config, sites = model.hf.config, model.sites
    chat = model.chat
    return {
        "name": model.name,
        "revision": model.revision or getattr(config, "_commit_hash", None),
        "weight_hash": model.weight_hash(),
        "dtype": str(model.hf.dtype).removeprefix("torch."),
        "attention": getattr(config, "_attn_implementation", None),
        "config_hash": digest(settled(config.to_dict())),
        "end_tokens": end_tokens(model),
        "tokenizer_hash": tokenizer_hash(model.tokenizer),
        "template_hash": digest(model.tokenizer.chat_template),
        "rendered_hash": digest([PROBES, model.tokenize(PROBES)]),
        "system": chat.system,
        **({"turns": [list(turn) for turn in chat.around.turns]} if chat.around.turns else {}),
        **({"prefill": chat.around.prefill} if chat.around.prefill else {}),
        **({"thinking": "on"} if chat.thinking.mode == "on" else {}),  # else it shows in prompts
        "sites_hash": digest(
            [
                sites.embedding,
                sites.blocks,
                sites.writers,
                sites.head,
                bool(sites.in_tuple),
                sites.embedding_elsewhere,
                *([] if sites.lanes is None else [sites.lanes.layout, sites.lanes.reads]),
                *([] if sites.additive else ["complete"]),
            ]
        ),
    }


@cache
def program() -> str:
    """A hash of this package's source: what is cheap is done anew, without a number to be
    forgotten, when it changes.

    That is the verdicts of the built-in detector on completions that are there, and the rates.
    """
    root = Path(__file__).parents[1]
    files = sorted(root.rglob("*.py"))
    return digest([[str(path.relative_to(root)), path.read_text("utf-8")] for path in files])


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all that decides which ids a text becomes and back: vocabulary, merges, normaliser, added
    and special tokens.

    Not of truncation and padding, which every call sets as it needs them.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        core: Any = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    else:
        core = json.loads(backend.to_str())
        for key in ("truncation", "padding"):
            core.pop(key, None)
    added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()}
    cleans = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
    return digest([settled(core), settled(added), settled(tokenizer.special_tokens_map), cleans])


def settled(value: Any) -> Any:
    """Values of a config as JSON has them, keys as texts in one order, without those that change
    nothing.
    """
    if isinstance(value, Mapping):
        items = {str(key): settled(item) for key, item in value.items() if key not in VOLATILE}
        return dict(sorted(items.items()))
    if isinstance(value, (list, tuple)):
        return [settled(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def digest(value: Any) -> str:
    """Sha256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
