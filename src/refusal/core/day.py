"""The date that chat templates write into prompts (Llama-3.2, gpt-oss, SmolLM3): one for a whole
run.

Templates ask for it with ``strftime_now``, which transformers answers by the clock of the moment,
so that a run that goes on tomorrow would have other prompts. Functions cannot be handed to a
template, but it can define its own: a macro of that name in front of it is called instead.
"""

import json
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import lru_cache
from typing import Any

from refusal.core.errors import ConfigError

LLAMA = "%d %b %Y"  # how Llama-3's templates write the date; 3.1's own is a fixed one
ASKS = "strftime_now"
# Every directive of Python's strftime, and those of the C library that templates are seen to use.
DIRECTIVES = [f"%{letter}" for letter in "aAwdbBmyYHIpMSfzZjUWcxXGuVeDFhRT"] + [
    f"%-{letter}" for letter in "dmyHIMSj"
]
# The newline at its end is trimmed like that after any block, and the template begins on a line of
# its own as before.
MACRO = """{%% macro strftime_now(form) -%%}
{%%- set all = namespace(text=form | replace("%%%%", "\\0")) -%%}
{%%- for directive, value in %s.items() -%%}
{%%- set all.text = all.text | replace(directive, value) -%%}
{%%- endfor -%%}
{{- all.text | replace("\\0", "%%") -}}
{%%- endmacro %%}
"""


@dataclass(frozen=True)
class Day:
    """A date, and whether the user has ``given`` it: only then does it replace one that a template
    names itself.
    """

    date: date
    given: bool = False

    @property
    def variables(self) -> dict[str, Any]:
        """What a template is rendered with."""
        return {"date_string": self.date.strftime(LLAMA)} if self.given else {}

    def dated(self, template: str) -> str:
        """The template with this date in the place of the clock's, where it asks for one."""
        if ASKS not in template:
            return template
        return _macro(self.date) + template

    def __str__(self) -> str:
        return self.date.isoformat()


@lru_cache
def _macro(day: date) -> str:
    """What answers templates with midnight of that day."""
    midnight = datetime.combine(day, time())
    return MACRO % json.dumps({directive: midnight.strftime(directive) for directive in DIRECTIVES})


def iso_date(value: object) -> str:
    """A date as ``YYYY-MM-DD``.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, date):
        return value.strftime("%Y-%m-%d")
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError as error:
        raise ValueError(f"{value!r} is no date, write YYYY-MM-DD") from error


def day_of(text: str | None, otherwise: date | None = None) -> Day:
    """The day that the user named; without one ``otherwise``, or today.

    Raises:
        ConfigError: no date.
    """
    if text is None:
        return Day(otherwise or date.today())
    try:
        return Day(date.fromisoformat(iso_date(text)), given=True)
    except ValueError as error:
        raise ConfigError(f"--date {text!r} is no date. Write it as YYYY-MM-DD.") from error
