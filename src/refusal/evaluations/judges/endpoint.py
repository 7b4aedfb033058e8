"""A general model behind an OpenAI-compatible address as a judge: a rubric's question, and what its
answer means.
"""

from collections.abc import Iterator, Sequence

from refusal.config.judges import OPENAI_URL, JudgeOptions
from refusal.core.endpoint import Endpoint
from refusal.core.endpoint_records import Address, Usage
from refusal.core.errors import JudgeError
from refusal.core.records import Completion
from refusal.evaluations.judges.protocol import JudgeKind, Judgement
from refusal.evaluations.judges.rubrics import Rubric


class EndpointJudge:
    """A judge behind an address.

    Attributes:
        name, kind: as in ``Judge``.
        model: the model's name at the endpoint.
    """

    def __init__(self, name: str, rubric: Rubric, model: str, options: JudgeOptions) -> None:
        """Nothing is sent yet.

        Raises:
            ConfigError: the openai package is missing, or the environment holds no key.
        """
        self.name = name
        self.kind: JudgeKind = rubric.kind
        self.model = model
        self._rubric = rubric
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
            ident = items[reply.index].prompt_id
            if reply.text is None:
                yield Judgement(ident, error=reply.error)
                continue
            answer = self._rubric.read(reply.text)
            if answer is None:
                yield Judgement(ident, error=f"answered {self._endpoint.clean(reply.text)!r}")
                continue
            yield Judgement(ident, answer.label, answer.score)
