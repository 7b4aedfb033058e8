"""``python -m refusal``."""

from refusal.cli.verbs import entry

entry()
