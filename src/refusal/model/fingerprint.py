"""Which model and which chat template something was fitted on, as hashes; and whether a model is
that one.
"""

import hashlib
import json
from dataclasses import replace
from datetime import date

from refusal.core.errors import MonitorError
from refusal.core.monitor import Monitor
from refusal.model.base import LoadedModel
from refusal.model.chat_template import PROBES, render, tokenize

DAY = date(2024, 7, 26)  # any: a template that writes the date is the same one tomorrow
SHOWN = 12  # letters of a hash


def template_fingerprint(model: LoadedModel) -> str:
    """Sha256 of the token ids of some prompts: template, tokenizer, system prompt, earlier turns,
    what is done about thoughts, and the answer's beginning are all in them.
    """
    chat = model.chat
    about = (chat.system, replace(chat.day, date=DAY), chat.thinking, chat.around)
    rows = [tokenize(model.tokenizer, render(model.tokenizer, q, *about)) for q in PROBES]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def check_monitor(monitor: Monitor, model: LoadedModel) -> None:
    """Raise MonitorError unless a monitor was fitted on this model, with these weights and
    prompts of this form. It takes about as long as reading the weights once.
    """
    _check("weights", monitor.model_hash, model.weight_hash(), monitor, model)
    _check("chat template", monitor.template_hash, template_fingerprint(model), monitor, model)


def _check(what: str, fitted: str, here: str, monitor: Monitor, model: LoadedModel) -> None:
    if here != fitted:
        raise MonitorError(
            f"The monitor was fitted on {monitor.model} with the {what} {fitted[:SHOWN]}…, and "
            f"{model.name} has {here[:SHOWN]}…. Use the model, dtype, system prompt and options "
            "that it was fitted with, or fit another monitor on this one."
        )
