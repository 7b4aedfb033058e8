"""Small matters of typography."""

import re


def minus(text: str) -> str:
    """With real minus signs before numbers."""
    return re.sub(r"(?<![\w-])-(?=[\d.])", "−", text)
