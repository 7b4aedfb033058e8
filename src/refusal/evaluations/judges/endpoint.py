"""A general model behind an OpenAI-compatible address as a judge: a rubric's question, and what its
answer means.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from refusal.config.judges import OPENAI_URL, JudgeOptions
from refusal.core.endpoint import Endpoint
from refusal.core.endpoint_records import Address, Usage
from refusal.core.errors import JudgeError
from refusal.core.records import Completion
from refusal.core.work import Ask, Work
from refusal.evaluations.judges.judgement import Judgement
from refusal.evaluations.judges.protocol import QUESTION_TOKENS, Judge
from refusal.evaluations.judges.rubrics import RUBRICS

ANSWER_TOKENS = 60  # about


class EndpointJudge(Judge):
    """A judge behind an address.

    Attributes:
        model: the model's name at the endpoint.
    """

    needs = "the name of a model at the endpoint"

    def __init__(self, kind: str, model: str, options: JudgeOptions) -> None:
        """Nothing is sent yet.

        Raises:
            ConfigError: the openai package is missing, or the environment holds no key.
        """
        super().__init__(kind, model, options)
        self._rubric = RUBRICS[kind]
        self.kind = self._rubric.kind
        self.model = model
        self._options = options
        named = options.judge_key_env != JudgeOptions.model_fields["judge_key_env"].default
        address = Address(
            url=options.judge_url,
            model=model,
            key_env=options.judge_key_env,
            key_needed=named or options.judge_url == OPENAI_URL,
            key_option="--judge-key-env",
            concurrency=options.judge_concurrency,
            timeout=options.judge_timeout,
            retries=options.judge_retries,
            max_tokens=options.judge_max_tokens,
        )
        self._endpoint = Endpoint(address, JudgeError)

    @property
    def usage(self) -> Usage:
        """What the answers of this object have cost so far."""
        return self._endpoint.usage

    @property
    def cost(self) -> float | None:
        """Money spent so far, in the currency of the prices; ``None`` where it is not known."""
        return self.usage.cost(self._options.judge_price_in, self._options.judge_price_out)

    @classmethod
    def costs(cls, model: str, options: JudgeOptions, n: int, length: float) -> Sequence[Work]:
        """One question each, with what all cost where both prices are given."""
        read = QUESTION_TOKENS + length
        price_in, price_out = options.judge_price_in, options.judge_price_out
        if price_in is None or price_out is None:
            return (Ask(n, read, ANSWER_TOKENS),)
        price = n * (read * price_in + ANSWER_TOKENS * price_out) / 1e6
        return (Ask(n, read, ANSWER_TOKENS, price),)

    @property
    def spent(self) -> Mapping[str, Any] | None:
        """Tokens, answers and money so far; nothing before the first answer."""
        return {**asdict(self.usage), "cost": self.cost} if self.usage.answers else None

    def judge(self, items: Sequence[Completion]) -> Iterator[Judgement]:
        """One judgement per item as the answers come. When the caller stops, requests under way are
        dropped.

        Raises:
            JudgeError: no such model, no valid key or credit, nobody there, or the first requests
                are turned down.
        """
        template = self._rubric.template
        questions = [template.format(prompt=item.prompt, completion=item.answer) for item in items]
        for reply in self._endpoint.ask(
            [[{"role": "user", "content": question}] for question in questions]
        ):
            ident = items[reply.index].key
            if reply.text is None:
                yield Judgement(ident, error=reply.error)
                continue
            answer = self._rubric.read(reply.text)
            if answer is None:
                yield Judgement(ident, error=f"answered {self._endpoint.clean(reply.text)!r}")
                continue
            yield Judgement(ident, answer.label, answer.score)
