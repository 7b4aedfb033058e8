"""scikit-learn, which some finders need, imported when they are used."""

import importlib
from typing import Any

from refusal.core.errors import ConfigError


def from_sklearn(module: str) -> Any:
    """A module of scikit-learn.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ConfigError(
            "The methods lda, probe and kmeans need scikit-learn. Install it with: pip install "
            "'refusal[finders]'."
        ) from error
