"""A server with an OpenAI-compatible address that holds the model, and the edited one beside it.

That it is this model, with this template, edited with this direction, is checked before it is
believed: it must read as many tokens of each prompt as the model here does, and its first
completions must begin as the model's own.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from refusal.config.engines import EngineOptions
from refusal.config.judges import OPENAI_URL
from refusal.core import parallel
from refusal.core.day import ASKS, LLAMA
from refusal.core.endpoint import Endpoint
from refusal.core.endpoint_records import Address
from refusal.core.errors import ConfigError, EngineError
from refusal.core.progress import task
from refusal.core.thinking import marked, split
from refusal.core.turns import Question, turns_of
from refusal.engines.hooks import HOOKS
from refusal.engines.protocol import Job
from refusal.interventions.conditions import BASELINE
from refusal.model.chat_model import ChatModel
from refusal.model.chat_template import PROBES, render, tokenize
from refusal.model.endings import thought_opened
from refusal.model.thinking_limits import Limits, limits
from refusal.model.thinking_tokens import as_written, loses_marks, readable

log = logging.getLogger(__name__)

ABLATION = "ablation"
RETRIES = 3
CHECKED = 4  # completions that are compared with the model's own
CHECKED_TOKENS = 12  # from their beginnings: later ones may differ by rounding
# vLLM's and SGLang's name of the switch; off, marks of thinking stay in the text
KEEP_MARKS = "skip_special_tokens"


class Server:
    """A server that runs already."""

    elsewhere = True

    def __init__(self, options: EngineOptions, scratch: Path | None = None) -> None:
        """Nothing is sent yet.

        Raises:
            ConfigError: it is not said what the server calls the edited model.
        """
        if options.engine_ablated is None:
            raise ConfigError(
                "--engine openai needs what the server calls the ablated model. Write it with "
                "refusal export RUN --as model (or lora), serve it beside the model, and give its "
                "name with --engine-ablated."
            )
        self._options = options

    @staticmethod
    def serves(condition: str) -> bool:
        """The unedited model and the edited one."""
        return condition in (BASELINE, ABLATION)

    def generate(self, job: Job) -> list[str]:
        """Write greedy completions of a job's instructions, in their order, by the server.

        Raises:
            EngineError: the server cannot be asked, or does not serve this model.
        """
        given = self._options
        url, served = given.engine_url, given.engine_model or job.model.name
        if job.condition == ABLATION:
            url, served = given.engine_ablated_url or url, str(given.engine_ablated)
        return ask_checked(address_of(given, url, served, job), job)

    def close(self) -> None:
        """It goes on running."""


def address_of(options: EngineOptions, url: str, served: str, job: Job) -> Address:
    """Where to ask for completions, and how: greedily, without penalties, and with the run's
    thinking.
    """
    extra: dict[str, Any] = {
        "frequency_penalty": 0
    }  # to transformers' server: no penalty of the generation config's
    if arguments := template_arguments(job.model):
        extra["chat_template_kwargs"] = arguments
    if loses_marks(job.model.tokenizer):
        extra[KEEP_MARKS] = False
    return Address(
        url=url,
        model=served,
        key_env=options.engine_key_env,
        key_needed=url == OPENAI_URL,
        key_option="--engine-key-env",
        concurrency=options.engine_concurrency,
        timeout=options.engine_timeout,
        retries=RETRIES,
        max_tokens=limits(job.model, job.max_new_tokens)[0],
        extra=extra,
    )


def template_arguments(model: ChatModel) -> dict[str, Any]:
    """What a server's template is told, so that it writes the prompts that the model here reads.

    Raises:
        EngineError: the template writes the date of the server's clock, and the run has another
            one; or prompts end with a closed thought that only this program can put there.
    """
    chat = model.chat
    freely = chat.thinking.freely
    if chat.around.prefill:
        raise EngineError(
            f"A server cannot be made to begin its answers with {chat.around.prefill!r}. Use "
            "--engine own or paged."
        )
    if freely.block:
        raise EngineError(
            "A server cannot be made to end its prompts with the closed thought "
            f"{freely.block!r}. Use --engine own or paged, or --thinking on."
        )
    found = dict(freely.variables) if chat.thinking_switch else {}
    ours = render(model.tokenizer, PROBES[0], chat.system, chat.day, freely, chat.around)
    if ours == _written_there(model, found):
        return found
    dated = {**found, "date_string": chat.day.date.strftime(LLAMA)}
    if ASKS in str(model.tokenizer.chat_template) and ours != _written_there(model, dated):
        raise EngineError(
            "The chat template writes the date, which at a server is that of its clock and in "
            f"this run {chat.day}. Use --engine own or paged, or begin a new run today."
        )
    return dated if chat.day.given or ASKS in str(model.tokenizer.chat_template) else found


def _written_there(model: ChatModel, arguments: dict[str, Any]) -> str | None:
    """A prompt as a server renders it, by its own clock; ``None`` where the template wants other
    messages.
    """
    messages: Any = _messages(model, PROBES[0])
    try:
        return str(
            model.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **arguments
            )
        )
    except (TemplateError, ValueError, TypeError):
        return None


def ask_checked(address: Address, job: Job) -> list[str]:
    """A server's completions of a job, the first few checked before the others are asked for.

    Raises:
        EngineError: it cannot be asked, leaves one out, or is another model than the one here.
    """
    try:
        return _ask_checked(address, job)
    except EngineError as error:
        if KEEP_MARKS not in address.extra or KEEP_MARKS not in str(error):
            raise
    extra = {name: value for name, value in address.extra.items() if name != KEEP_MARKS}
    return _ask_checked(
        replace(address, extra=extra), job
    )  # a server that does not know it may mark thoughts itself


def _ask_checked(address: Address, job: Job) -> list[str]:
    endpoint, instructions = Endpoint(address, EngineError), job.instructions
    opened = thought_opened(job.model)
    lengths = [len(tokens) for tokens in job.model.tokenize(instructions, freely=True)]
    with task(job.name, total=len(instructions), unit="completions") as advance:

        def ask(start: int, stop: int) -> list[str]:
            written: dict[int, str] = {}
            chosen = range(start, min(stop, len(instructions)))
            for reply in endpoint.ask([_messages(job.model, instructions[i]) for i in chosen]):
                i = chosen[reply.index]
                if reply.text is None:
                    raise EngineError(
                        f"{endpoint.address.url} gave no completion of prompt {i + 1} of "
                        f"{len(instructions)}: {reply.error}. Look at the server's log, then "
                        "start the same command again."
                    )
                _check_length(endpoint, reply.tokens_in, lengths[i])
                written[i] = _cut(job, marked(reply.text, opened, reply.thought), opened)
                advance(1)
            return [written[i] for i in chosen]

        first = ask(0, CHECKED)
        _check_beginnings(endpoint, job, first)
        return first + ask(CHECKED, len(instructions))


def _cut(job: Job, text: str, opened: bool) -> str:
    """A completion as far as the limits of thought and answer go; a server knows only their sum."""
    _, limit = limits(job.model, job.max_new_tokens)
    if not isinstance(limit, Limits):
        return text
    tokenizer = job.model.tokenizer
    ids = tokenize(tokenizer, as_written(tokenizer, text, opened))
    kept = limit.cut(ids)
    return text if len(kept) == len(ids) else readable(tokenizer, kept, opened)


def _messages(model: ChatModel, question: Question) -> list[dict[str, str]]:
    chat = model.chat
    system = (("system", chat.system),) if chat.system is not None else ()
    turns = (*system, *chat.around.turns, *turns_of(question))
    return [{"role": role, "content": text} for role, text in turns]


def _check_length(endpoint: Endpoint, read: int | None, ours: int) -> None:
    if read is not None and read != ours:
        raise EngineError(
            f"{endpoint.address.url} reads {read} tokens of a prompt that has {ours} here: its "
            "chat template is another one. Serve the model with the same tokenizer and template."
        )


def _check_beginnings(endpoint: Endpoint, job: Job, written: Sequence[str]) -> None:
    """Compare the first completions with the model's own: none alike is an error, some of them only
    a warning.
    """
    if parallel.split():
        log.warning(
            "The model here is split over processes: what %s writes is not compared with it.",
            endpoint.address.url,
        )
        return
    beginnings = replace(
        job,
        instructions=job.instructions[: len(written)],
        max_new_tokens=min(CHECKED_TOKENS, job.max_new_tokens),
        name=f"check: {job.condition}",
    )
    own = HOOKS.generate(beginnings)
    for ours, theirs in zip(own, written, strict=True):
        if split(ours).thought and not split(theirs).thought:
            raise EngineError(
                f"{endpoint.address.url} drops the marks between thought and answer, so the two "
                "cannot be told apart. Start the server with its reasoning parser for this model, "
                "or use another --engine."
            )
    alike = sum(
        _words(theirs).startswith(_words(ours)) for ours, theirs in zip(own, written, strict=True)
    )
    what = (
        f"{endpoint.address.model!r} at {endpoint.address.url} begins {alike} of {len(written)} "
        f"completions as the model does under {job.condition} here"
    )
    if written and not alike:
        raise EngineError(
            f"{what}: it is another model, another edit, or samples with penalties. "
            "Serve what refusal export wrote from this run, with greedy decoding."
        )
    (log.info if alike == len(written) else log.warning)("%s.", what)


def _words(text: str) -> str:
    """A completion whatever its marks of thinking and the spaces around them."""
    thought, answer, _ = split(text)
    return f"{thought.strip()}{answer.strip()}".rstrip("�")
