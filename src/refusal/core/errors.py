"""Every exception the package raises, in one small tree.

    Error
    ├── UsageError                 exit code 2: the input has to change
    │   ├── ConfigError            an option, a preset or a TOML file
    │   ├── PromptError            a prompt file or a prompt source
    │   ├── ModelLoadError         the model or its tokenizer cannot be loaded
    │   ├── ChatTemplateError      no chat template, or one that rejects the prompt
    │   ├── UnsupportedModelError  blocks or writers were not found or do not add up
    │   ├── QuantisedModelError    weights that are no plain numbers cannot be edited
    │   ├── ExportError            a place that is taken, or a format without room for it
    │   ├── DirectionError         a direction of another width or model, or unreadable
    │   ├── MonitorError           a monitor of another model or template, or unreadable
    │   ├── LeakageError           a test prompt that the direction was found or chosen with
    │   ├── JudgeError             an endpoint that cannot be asked: no model, key or server
    │   ├── EngineError            a server that writes no completions, or is of another model
    │   └── RunFolderError         a run folder of another model or version, or unwritable
    └── RunFailure                 exit code 1: the run ended with a documented failure
        ├── TooFewPromptsError     not enough prompts pass the filter
        ├── NoCandidateError       no candidate qualifies, under ``strict``
        ├── NonFiniteError         NaN or infinity in an activation or a score
        ├── OutOfMemoryError       not even a batch of one fits
        ├── RankError              another process of the run has ended
        └── StorageError           the disk is full or a file cannot be written

Each message is one sentence of what is wrong, with the value, and one of what to do.
"""

from collections.abc import Sequence
from typing import Any


class Error(Exception):
    """Base of every exception of the package; ``exit_code`` is what the command line returns.

    ``everywhere``: every process of the run has it.
    """

    exit_code = 1
    everywhere = False


class UsageError(Error):
    """Something the caller gave cannot be used."""

    exit_code = 2


class ConfigError(UsageError):
    """An option, a preset or a TOML file is wrong."""


class PromptError(UsageError):
    """A prompt file or source cannot be read or holds no usable prompts."""


class ModelLoadError(UsageError):
    """The model or its tokenizer cannot be loaded."""


class ChatTemplateError(UsageError):
    """The tokenizer has no chat template, or the template rejects the conversation."""


class UnsupportedModelError(UsageError):
    """The decoder blocks or the writers to the residual stream were not found, or do not add up."""


class QuantisedModelError(UsageError):
    """The weights are quantised: hooks work, editing does not."""


class ExportError(UsageError):
    """The output folder is not empty, or the format cannot hold the edit exactly."""


class DirectionError(UsageError):
    """A direction cannot be read, or does not fit the model."""


class MonitorError(UsageError):
    """A monitor cannot be read or calibrated, or is of another model or template."""


class LeakageError(UsageError):
    """A prompt that is to be tested on took part in finding or choosing the direction."""


class JudgeError(UsageError):
    """A judge's endpoint cannot be asked: no such model, no valid key, or no server there."""


class EngineError(UsageError):
    """A server that should write completions cannot be asked, or serves another model."""


class RunFolderError(UsageError):
    """The run folder belongs to another model or format version, or cannot be used."""


class RunFailure(Error):
    """The run ended with a documented failure."""


class TooFewPromptsError(RunFailure):
    """Fewer prompts than the method needs pass the refusal filter."""


class NoCandidateError(RunFailure):
    """No candidate satisfies the selection rule and ``strict`` was asked for, or none is even near.

    ``scores`` are the candidates' scores, as far as they were needed.
    """

    def __init__(self, message: str, scores: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.scores = tuple(scores)


class NonFiniteError(RunFailure):
    """An activation or a score is NaN or infinite."""


class OutOfMemoryError(RunFailure):
    """Not even a batch of one prompt fits into memory."""


class RankError(RunFailure):
    """Another process of the run has ended or cannot be reached."""


class StorageError(RunFailure):
    """A file could not be written: the disk is full or the folder is read-only."""
