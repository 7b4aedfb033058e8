"""The same interventions with other directions of equal size: what they do is no merit of this one.

controls.safetensors    random, of shuffled labels, of matched pairs
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from refusal.core.errors import DirectionError
from refusal.core.records import Metric
from refusal.core.storage import write_tensors
from refusal.core.valid import direction_fault
from refusal.core.work import Read, Work
from refusal.directions.controls import control_directions
from refusal.interventions.conditions import action_of
from refusal.prompts.load import matched_pairs
from refusal.runs.folder import prompts_hash
from refusal.runs.records import PARTS, read_controls
from refusal.runs.stage import Plan, Run, Stage

MATCHED = 200  # prompts of the matched pairs, and tokens of one beside what others begin with
MATCHED_TOKENS = 7
FITTED = 2  # controls that are no random directions: shuffled labels, matched pairs


class Controls(Stage):
    """The control directions themselves."""

    name = "controls"

    @classmethod
    def costs(cls, plan: Plan) -> Sequence[Work]:
        """Means over shuffled training prompts and over matched pairs."""
        if plan.config.controls == 0:
            return ()
        pairs = Read(MATCHED, MATCHED_TOKENS)
        return Read(2 * plan.config.n_train, plan.lengths.train), pairs

    def work(self, run: Run) -> Iterable[Metric]:
        """Make them once, and leave them in ``controls.safetensors``."""
        config, train = run.config, self.asked.prompts.train
        if config.controls == 0:
            return ()
        path = run.folder.path / "controls.safetensors"
        inputs = {
            "direction": run.direction_hash,
            "n": config.controls,
            "train": prompts_hash([*train.harmful, *train.harmless]),
            "n_train": config.n_train,
            "seed": config.seed,
        }
        measured = [prompt for pool in self.asked.measured.values() for prompt in pool]
        like = replace(run.direction, by_layer=None)
        if any(action_of(name).by_layer for name in config.interventions):
            inputs["by_layer"], like = True, run.direction
        pairs = matched_pairs(apart_from=measured)
        if len(pairs.harmful) < len(matched_pairs().harmful):  # own prompts may be among them
            inputs["matched"] = prompts_hash([*pairs.harmful, *pairs.harmless])

        def work() -> None:
            made = control_directions(
                run.model,
                like,
                train,
                n_random=config.controls,
                n_train=config.n_train,
                matched=pairs,
                seed=config.seed,
            )
            about, tensors = {}, {}
            for name, control in made.items():
                about[name] = json.dumps({"norm": control.norm, "seen": sorted(control.seen)})
                tensors[name] = control.vector
                for part in PARTS:
                    if (rows := getattr(control, part)) is not None:
                        tensors[f"{name}.{part}"] = rows
            write_tensors(path, tensors, about)

        self.do(run, "", inputs, [path], work, self.costs(run.plan))
        found = read_controls(path, run.direction)
        for name, d in found.items():
            if fault := direction_fault(d.vector.numpy(), d.norm, d.position, d.layer, d.qualified):
                raise DirectionError(
                    f"{path}: {name} is no direction, {fault}. Delete it; the same command makes "
                    "it."
                )
        run.controls = found
        return ()
