"""PhaseClock: a profiler for Lightning's Trainer that says in which phase of a `fit` its time went.

It is apart from `studies`, whose import would be part of the start that it is to measure.
"""

import json
import re
import time
from pathlib import Path

from lightning.pytorch.profilers import Profiler
from typing_extensions import override

# the beginnings of the names of Lightning's and this project's actions, and the phases that these belong to; all others
# belong to the phase of the action around them
PHASES = {
    r"run_training_batch": "training",
    r"\[_TrainingEpochLoop\]\.train_dataloader_next": "training",
    r"\[Strategy\]\w+\.validation_step": "validation",
    r"\[_EvaluationLoop\]": "validation",
    r"\[Callback\]Pictures": "pictures",
    r"\[Callback\]IsODE": "is_ode",
    r"\[Callback\](Best|Last)Checkpoint": "checkpoints",
    r"save_checkpoint": "checkpoints",
}
OUTERMOST = "loop"  # Lightning's loops, data to the device, logging, setting up


class PhaseClock(Profiler):
    """Writes the seconds that each phase took as a JSON file when the fit ends.

    `began` and `ended` are the times of the first action and of the end, in seconds since 1970. In each moment the
    innermost phase counts: the step of a validation batch is validation, the pictures drawn of it are pictures.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self.began = time.time()
        self.last = time.perf_counter()
        self.open = [OUTERMOST]
        self.is_written = False
        self.seconds = dict.fromkeys([OUTERMOST, *PHASES.values()], 0.0)

    def _charge(self) -> None:
        now = time.perf_counter()
        self.seconds[self.open[-1]] += now - self.last
        self.last = now

    @override
    def start(self, action_name: str) -> None:
        self._charge()
        found = next((phase for name, phase in PHASES.items() if re.match(name, action_name)), self.open[-1])
        self.open.append(found)

    @override
    def stop(self, action_name: str) -> None:
        self._charge()
        self.open.pop()

    @override
    def summary(self) -> str:
        return json.dumps({"began": self.began, "ended": time.time(), **self.seconds})

    @override
    def teardown(self, stage: str | None) -> None:
        if not self.is_written:  # Lightning calls this again when the profiler is deleted
            self._charge()
            self.path.write_text(self.summary())
            self.is_written = True
        super().teardown(stage)
