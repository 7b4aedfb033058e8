"""Write what was found and done to disk: an edited model's folder, a LoRA adapter's, or the
direction alone.

A folder appears whole or not at all, and says what was changed: in its model card and, for a model,
in its config.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from transformers.utils.hub import cached_file

from refusal.config.exports import NormRule
from refusal.core.direction import Direction
from refusal.core.errors import ExportError
from refusal.core.progress import task
from refusal.core.storage import check_room, new_folder, write_json, write_tensors, write_text
from refusal.core.turns import Question
from refusal.interventions.ablate_add import Ablate
from refusal.model.chat_model import ChatModel
from refusal.model.loading_bars import bars_as_tasks
from refusal.weights.agreement import check_unedited
from refusal.weights.lora import adapter_of
from refusal.weights.lora_check import check_adapter, require_peft
from refusal.weights.orthogonalise import (
    OrthogonalisationReport,
    orthogonalisation_gap,
    orthogonalise,
    plan,
    report_of,
)
from refusal.weights.parameters import find_parameters
from refusal.weights.projection import size_before
from refusal.weights.verify import check_direction_file, check_model

SLACK = 64 * 2**20  # tokenizer, configs, headers
# What a multimodal wrapper needs beside model and tokenizer.
PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)


@dataclass(frozen=True)
class Exported:
    """What was written, and what was done to the weights (``None`` for a bare direction)."""

    kind: str
    path: Path
    report: OrthogonalisationReport | None = None


def export_model(
    model: ChatModel,
    direction: Direction | Ablate,
    out: str | Path,
    prompts: Sequence[Question] = (),
    *,
    norm: NormRule | None = None,
) -> Exported:
    """Orthogonalise ``model`` in memory, for good, and write a folder that transformers loads.

    Args:
        model: edited in place.
        direction: what is projected out, or an ablation of any form.
        out: a new or empty folder.
        prompts: instructions on which the agreement with the hooks is measured, for the model card.
        norm: whose norms are kept, see ``orthogonalise``.

    Raises:
        ExportError: ``out`` is not empty, or what was written does not load as what was meant.
        StorageError: not enough room, or not writable.
        refusal.Error: what ``orthogonalise`` raises.
    """
    out = Path(out)
    hf = model.hf
    tensors = {t.data_ptr(): t.numel() * t.element_size() for t in hf.state_dict().values()}
    head = hf.get_output_embeddings().weight  # tied ones part
    needed = sum(tensors.values()) + head.numel() * head.element_size() + SLACK
    check_room(out, needed)  # before the work
    parameters = find_parameters(model.hf, model.sites)
    edit = plan(model, direction, parameters)  # behind a norm of the unedited model
    sizes = {}
    for p in edit.parameters:
        old = hf.get_parameter(p.name).detach()
        sizes[p.name] = size_before(old, p.axis, edit.removals[p.name], norm)
    report = orthogonalise(model, direction, prompts, norm=norm, parameters=parameters)
    note = what_was_done(model.name, model_revision(model), edit.ablation, report)
    with (
        new_folder(out, needed) as folder,
        bars_as_tasks(),
        task("write the model", total=0, unit=""),
    ):
        hf.config.refusal = note
        try:
            hf.save_pretrained(folder)
        finally:
            del hf.config.refusal
        model.tokenizer.save_pretrained(folder)
        _copy_processor(model, folder)
        write_text(folder / "README.md", model_card("model", note))
        check_model(folder, hf, edit, sizes, norm)
    return Exported("model", out, report)


def export_lora(
    model: ChatModel,
    direction: Direction | Ablate,
    out: str | Path,
    prompts: Sequence[Question] = (),
) -> Exported:
    """Write the orthogonalisation as a PEFT adapter for the unedited model, which stays as it is.

    Raises:
        ExportError: ``out`` is not empty, a parameter that PEFT has no layer for, or PEFT loads it
            otherwise.
        StorageError: not enough room, or not writable.
        refusal.Error: what ``orthogonalise`` raises.
    """
    out = Path(out)
    check_room(out, SLACK)
    require_peft()
    parameters = find_parameters(model.hf, model.sites)
    edit = plan(model, direction, parameters)
    adapter = adapter_of(model.hf, edit, model.name, model.revision)
    check_unedited(model.hf, model.sites, edit)
    gap = (
        orthogonalisation_gap(model, direction, prompts, parameters=parameters) if prompts else None
    )
    report = report_of(model, edit, untied=False, gap=gap)
    needed = sum(t.numel() * t.element_size() for t in adapter.tensors.values()) + SLACK
    with new_folder(out, needed) as folder:
        write_json(folder / "adapter_config.json", adapter.config)
        write_tensors(folder / "adapter_model.safetensors", adapter.tensors, {"format": "pt"})
        write_text(
            folder / "README.md",
            model_card(
                "lora", what_was_done(model.name, model_revision(model), edit.ablation, report)
            ),
        )
        check_adapter(folder, adapter.tensors, model.hf, model.sites, edit)
    return Exported("lora", out, report)


def export_direction(direction: Direction, out: str | Path) -> Exported:
    """Write the direction as safetensors: to ``out`` if it ends in ``.safetensors``, else into that
    folder.

    Raises:
        ExportError: the file exists.
        StorageError: not writable.
    """
    out = Path(out)
    path = out if out.suffix == ".safetensors" else out / "direction.safetensors"
    if path.exists():
        raise ExportError(f"{path} exists. Give another --out, or delete it.")
    direction.save(path)
    check_direction_file(path, direction)
    return Exported("direction", path)


def model_revision(model: ChatModel) -> str | None:
    """The revision that was asked for, else the commit that was loaded; ``None`` for a folder."""
    return model.revision or getattr(model.hf.config, "_commit_hash", None)


def what_was_done(
    name: str, revision: str | None, ablation: Ablate, report: OrthogonalisationReport
) -> dict[str, Any]:
    """The edit of the model called ``name`` as plain values, for a config and a model card."""
    gap, direction = report.gap, ablation.direction
    path = Path(name)
    return {
        "method": "orthogonalisation",
        "strength": ablation.alpha,
        "rank": ablation.rank,
        "kernel": None if ablation.kernel is None else asdict(ablation.kernel),
        "per_layer": ablation.per_layer,
        "norms_kept": report.norm,
        "left_of_direction": None if report.left is None else float(f"{report.left:.3g}"),
        "base_model": path.name if path.exists() else name,  # a path says nothing elsewhere
        "base_revision": revision,
        "position": direction.position,
        "layer": direction.layer,
        "rows": [list(place) for place in direction.places],
        "norm": direction.norm,
        "qualified": direction.qualified,
        "edited_parameters": len(report.parameters),
        "behind_post_norm": report.behind_norm,
        "untied_embedding": report.untied,
        "text_only": report.text_only,
        "gap_to_ablation": None
        if gap is None
        else {
            "logits": gap.logits,
            "kl": gap.kl,
            "same_argmax": gap.same_argmax,
            "prompts": gap.prompts,
        },
        "refusal_version": _version(),
    }


def model_card(kind: str, note: dict[str, Any]) -> str:
    """README.md of an export."""
    source = files("refusal.weights").joinpath("model_card.md.jinja").read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.from_string(source).render(kind=kind, **note)


def _copy_processor(model: ChatModel, folder: Path) -> None:
    """A wrapper's processor files, as they are beside the model it was loaded from."""
    source = model.hf.name_or_path
    if not source:
        return
    for name in PROCESSOR_FILES:
        found = cached_file(
            source,
            name,
            revision=model.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is not None and not (folder / name).exists():
            write_text(folder / name, Path(found).read_text(encoding="utf-8"))


def _version() -> str:
    try:
        return version("refusal")
    except PackageNotFoundError:
        return "unknown"
