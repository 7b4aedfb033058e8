"""Are completions of the prompts that they are said to be of?"""

from collections import Counter
from collections.abc import Sequence

from refusal.core.errors import RunFolderError
from refusal.core.records import Completion, Prompt
from refusal.core.sampling import sample_key


def check_completions(
    completions: Sequence[Completion], prompts: Sequence[Prompt], where: str
) -> None:
    """Make sure that there is exactly one completion per prompt, of that prompt's text; of drawn
    ones as many of each, with the same numbers.

    Args:
        completions: as read back, in any order.
        prompts: what they should be of.
        where: the file, for the message.

    Raises:
        RunFolderError: an id twice, missing or unknown, or another text.
    """
    numbers = list(dict.fromkeys(c.sample for c in completions)) or [None]
    known = [sample_key(p.id, number) for p in prompts for number in numbers]
    check_ids([c.key for c in completions], known, where, "completion")
    missing = set(known) - {c.key for c in completions}
    if missing:
        what = "prompts" if numbers == [None] else "samples"
        raise RunFolderError(
            f"{where} has no completion of {some_of(missing)} ({len(missing)} of {len(known)} "
            f"{what}). Generate the completions again, or give the prompts that they are of."
        )
    asked = {p.id: (p.before, p.text) for p in prompts}
    other = {c.prompt_id for c in completions if (c.before, c.prompt) != asked[c.prompt_id]}
    if other:
        raise RunFolderError(
            f"{where} has another prompt under the name {some_of(other)}. "
            "Generate the completions again, or give the prompts that they are of."
        )


def check_ids(ids: Sequence[str], known: Sequence[str], where: str, what: str) -> None:
    """Make sure that no id stands twice, and that all are known.

    Raises:
        RunFolderError: they are not.
    """
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise RunFolderError(
            f"{where} has more than one {what} of {some_of(twice)}. Delete it to make it again."
        )
    unknown = set(ids) - set(known)
    if unknown:
        raise RunFolderError(
            f"{where} has a {what} of {some_of(unknown)}, which is not among the {len(known)} that "
            "it should be of. Delete it to make it again, or give what it is of."
        )


def some_of(names: Sequence[str] | set[str]) -> str:
    """The first few names, for a message."""
    shown = sorted(names)[:3]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")
