"""lm-eval's model over a loaded chat model: as it is, or reading once what requests begin with in
common.

``SharedLM`` replaces the two methods that run the model. Log-likelihoods: requests become trees of
tokens (``forward.plan``), and the output head sees only the tokens that are scored. Greedy
generation: the package's own (``generation.generate_rows``), in which rows that have written a stop
string leave the batch. All else, tokenisation, truncation, post-processing, filters and metrics, is
lm-eval's own ``HFLM``.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float
from lm_eval.api.instance import Instance
from lm_eval.models import huggingface
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from torch import Tensor
from transformers import PreTrainedModel

from refusal.model.batch_size import MOST_SCORED, keeping_memory
from refusal.model.chat_model import ChatModel
from refusal.model.forward import logits_at, share_batches
from refusal.model.generation import generate_rows
from refusal.model.hooks import Edit, hooked
from refusal.model.rows import Batch

log = logging.getLogger(__name__)

Answer = tuple[float, bool]  # log-likelihood of a continuation, and whether it is the greedy one

HF_ROWS = 8  # prompts at once where transformers generates
# What a generation config may say without the greedy answer being another than the argmax: the ids,
# what only sampling reads, lengths and output formats. A repetition penalty (Qwen2.5) is none of
# them.
PLAIN = frozenset(
    (
        *(
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "transformers_version",
            "_from_model_config",
            "use_cache",
        ),
        *(
            "do_sample",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "typical_p",
            "epsilon_cutoff",
            "eta_cutoff",
        ),
        *(
            "max_length",
            "max_new_tokens",
            "output_attentions",
            "output_hidden_states",
            "output_scores",
        ),
        *("output_logits", "return_dict_in_generate"),
    )
)
GREEDY = frozenset(
    ("until", "max_gen_toks", "do_sample", "temperature")
)  # all that a greedy task asks for


class SharedLM(HFLM):  # type: ignore[misc]  # lm-eval is untyped
    """``HFLM`` over a ``ChatModel``; ``label`` names its progress."""

    def __init__(self, chat: ChatModel, label: str, **options: Any) -> None:
        super().__init__(pretrained=chat.hf, **options)
        self.chat = chat
        self.label = label

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        whole = [[*context, *continuation] for _, context, continuation in requests]
        if n_cut := sum(len(row) > self.max_length + 1 for row in whole):
            log.warning(
                "%d prompts were cut to the model's %d tokens, at their beginning.",
                n_cut,
                self.max_length,
            )
        rows = [
            row[-(self.max_length + 1) :][:-1] for row in whole
        ]  # the last token is predicted, not read
        scored = [continuation for _, _, continuation in requests]
        most = MOST_SCORED * sum(map(len, rows)) // max(1, sum(map(len, scored)))
        answers: dict[int, Answer] = {}
        bar = huggingface.tqdm(
            total=len(rows), disable=disable_tqdm, desc="Running loglikelihood requests"
        )

        def score(batch: Batch) -> list[Answer]:
            bar.update(len(batch.prompts))
            return _score(self.chat, batch, scored)

        with keeping_memory():
            for prompts, found in share_batches(self.chat, rows, score, most):
                answers.update(zip(prompts, found, strict=True))
        bar.close()
        return [answers[i] for i in range(len(rows))]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers by the package's own generation; whatever else is asked for by
        transformers', as ``HFLM``.
        """
        wanted = [normalize_gen_kwargs(request.args[1], self.max_gen_toks) for request in requests]
        answers: dict[int, str] = {}
        for kwargs in [one for i, one in enumerate(wanted) if one not in wanted[:i]]:
            members = [i for i, one in enumerate(wanted) if one == kwargs]
            answer = self._answer_greedily if self._is_greedy(kwargs) else self._answer_as_asked
            answers.update(
                zip(members, answer([requests[i] for i in members], kwargs), strict=True)
            )
        return [answers[i] for i in range(len(requests))]

    def _is_greedy(self, kwargs: dict[str, Any]) -> bool:
        """Whether the answer is that of plain argmax, by the task and by the model's own generation
        config.
        """
        config = self.model.generation_config
        plain = config is None or config.to_diff_dict().keys() <= PLAIN
        return plain and kwargs.keys() <= GREEDY and not kwargs["do_sample"]

    def _answer_as_asked(self, requests: list[Instance], kwargs: dict[str, Any]) -> list[str]:
        with counted(self.chat):
            answers: list[str] = super().generate_until(requests)
        return answers

    def _answer_greedily(self, requests: list[Instance], kwargs: dict[str, Any]) -> list[str]:
        until = handle_stop_sequences(
            kwargs["until"], eos=self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        )
        room = self.max_length - kwargs["max_gen_toks"]
        rows = []
        for request in requests:
            encoded = self.tok_batch_encode([request.args[0]], left_truncate_len=room)[0]
            rows.append(encoded[0].tolist())
        # As lm-eval's stopping criterion: a stop string may be written in other tokens than the
        # tokenizer would use.
        lookback = 2 + max(
            len(self.tokenizer.encode(stop, add_special_tokens=False)) for stop in until
        )

        def ended(tokens: Sequence[int]) -> bool:
            text = self.tokenizer.decode(tokens[-lookback:])
            return any(stop in text for stop in until if stop)

        outputs = generate_rows(self.chat, rows, kwargs["max_gen_toks"], self.label, ended=ended)
        return [
            postprocess_generated_text(self.tok_decode(output), until, None) for output in outputs
        ]


def make_harness(chat: ChatModel, label: str, exact: bool, batch_size: int | None) -> Any:
    """lm-eval's model over ``chat``: ``HFLM`` itself if ``exact``, else ``SharedLM``.

    The model is neither copied nor moved, and what is tied or untied stays so; lm-eval works on a
    copy of the tokenizer, which it may give a padding token, and whose template writes
    conversations as the model's own prompts are written: its date, thoughts off or closed.
    """
    tokenizer, day, thinking = deepcopy(chat.tokenizer), chat.chat.day, chat.chat.thinking
    tokenizer.chat_template = _ending(day.dated(tokenizer.get_chat_template()), thinking.block)
    options = {
        "tokenizer": tokenizer,
        "batch_size": batch_size or (1 if exact else HF_ROWS),
        "chat_template_args": {**dict(thinking.variables), **day.variables},
    }
    with _ties_kept(chat.hf):
        return HFLM(pretrained=chat.hf, **options) if exact else SharedLM(chat, label, **options)


def _ending(template: str, block: str) -> str:
    """A chat template that ends what it writes for a generation with ``block``."""
    if not block:
        return template
    literal = block.encode("unicode-escape").decode("ascii").replace("'", "\\'")
    end = "{% if add_generation_prompt %}{{ '" + literal + "' }}{% endif %}"
    return template.removesuffix("\n") + end  # Jinja leaves a last line's end out


@contextmanager
def counted(chat: ChatModel) -> Iterator[None]:
    """Count the tokens that others run through the model inside the block."""

    def count(ids: Tensor) -> None:
        chat.forward_tokens += ids.numel()

    with hooked([Edit(chat.hf.get_input_embeddings(), "input", count)]):
        yield


@contextmanager
def _ties_kept(hf: PreTrainedModel) -> Iterator[None]:
    """Inside the block nothing can tie weights: ``HFLM`` does when it is made, by the config and
    not by the weights.
    """
    hf.tie_weights = lambda *args, **kwargs: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del hf.tie_weights


def _score(model: ChatModel, batch: Batch, scored: Sequence[Sequence[int]]) -> list[Answer]:
    """Log-likelihood of the tokens that each prompt's last ones predict; softmax in float32."""
    lengths = [len(scored[i]) for i in batch.prompts]
    tokens = [path[-n:] for path, n in zip(batch.paths, lengths, strict=True)]
    with torch.inference_mode():
        logits = logits_at(model, batch, tokens)
    parts = zip(batch.prompts, logits, strict=True)
    return [_answer(part, scored[i]) for i, part in parts]


def _answer(logits: Float[Tensor, "token vocab"], continuation: Sequence[int]) -> Answer:
    wanted = torch.tensor(continuation, device=logits.device)
    likelihood = logits.float().log_softmax(-1).gather(1, wanted[:, None]).sum()
    return float(likelihood), bool((logits.argmax(-1) == wanted).all())
