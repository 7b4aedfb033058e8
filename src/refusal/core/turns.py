"""What a model is asked: a text, or a conversation whose last turn is the user's."""

import hashlib

Turns = tuple[tuple[str, str], ...]  # role (system, user, assistant) and text
Question = str | Turns


def turns_of(question: Question) -> Turns:
    """The turns of a question; a text is one turn of the user."""
    return (("user", question),) if isinstance(question, str) else question


def asked(text: str, before: Turns = ()) -> Question:
    """The question that a text is after the turns ``before`` it."""
    return (*before, ("user", text)) if before else text


def fingerprint(text: str, before: Turns = ()) -> str:
    """Hash of a prompt whatever its case and spacing; of a conversation over all of its turns, with
    their roles.
    """
    parts = [f"{role}\0{_plain(said)}\n" for role, said in before]
    return hashlib.sha256("".join([*parts, _plain(text)]).encode()).hexdigest()[:16]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
