"""Things of one kind by name: a dict of ``"module:attribute"``, imported when one is asked for, or
of records that are light.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from refusal.core.errors import ConfigError


class Registry(Mapping[str, Any]):
    """A table of names and where each is defined; a look-up imports that module and no other.

    Names can be listed, counted and tested without importing anything. A new thing is one file and
    one line in its table.
    """

    def __init__(self, kind: str, table: Mapping[str, Any]) -> None:
        """``kind`` is what messages call one of them ("method"); a text in the table is the place
        of what is registered, anything else is that itself.
        """
        self.kind = kind
        self.table = dict(table)

    def __getitem__(self, name: str) -> Any:
        """What is registered under ``name``.

        Raises:
            ConfigError: nothing is; the message lists the names and the nearest of them.
        """
        if name not in self.table:
            near = get_close_matches(name, self.table, n=1)
            guess = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"There is no {self.kind} {name!r}. {guess}Use one of: {', '.join(self.table)}."
            )
        found = self.table[name]
        return imported(found) if isinstance(found, str) else found

    def __contains__(self, name: object) -> bool:
        return name in self.table

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)


def imported(place: str) -> Any:
    """What stands at ``"module:attribute"``."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
