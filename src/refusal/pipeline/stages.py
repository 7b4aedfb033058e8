"""The stages of a run in their order: one more is one more line here."""

from refusal.evaluations.capability.stage import Capability
from refusal.evaluations.drift.stage import DriftStage
from refusal.evaluations.finders import Finders
from refusal.evaluations.judges.stage import Judging
from refusal.evaluations.refusal.controlled import Controls
from refusal.evaluations.refusal.fires import Fires
from refusal.evaluations.refusal.generate import Generate
from refusal.evaluations.refusal.measured import Rates
from refusal.evaluations.seeds import Seeds
from refusal.evaluations.separation import Separation
from refusal.evaluations.thoughts import Thoughts
from refusal.evaluations.transfer.stage import Transfer
from refusal.runs.finding import Extract, Select, Tokens
from refusal.runs.sorting import Sorting
from refusal.runs.stage import Stage

# By the verb of the command line that goes as far as that.
STAGES: dict[str, tuple[type[Stage], ...]] = {
    "extract": (Tokens, Sorting, Extract),
    "select": (Select, Separation, Finders),
    "transfer": (Transfer,),
    "generate": (Controls, Generate),
    "evaluate": (Rates, Fires, Thoughts, Capability, Seeds, Judging, DriftStage),
}
ALL = tuple(stage for stages in STAGES.values() for stage in stages)
