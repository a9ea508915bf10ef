"""What metrics.jsonl holds, as TensorBoard reads it: RUN/tensorboard/.  Needs the package tensorboard."""
import math
import os
import shutil
import time
from datetime import datetime
from pathlib import Path

from engine.files import read_jsonl, read_record
from engine.runs import TOTALS


class Export:
    """The events of one run; `update` adds the steps that were logged since."""

    def __init__(self, run: Path):
        self.run, self.rows, self.writer = run, [], None

    def update(self) -> int:
        """-> how many steps the run has logged"""
        rows = read_jsonl(self.run / "metrics.jsonl")
        if self.writer is None or rows[:len(self.rows)] != self.rows:   # begun anew, or gone back to an earlier state
            self.begin()
        for row in rows[len(self.rows):]:
            for key, value in row.items():
                if key != "step" and isinstance(value, int | float) and math.isfinite(value):
                    tag = f"{'totals' if key in TOTALS else 'metrics'}/{key}"
                    self.writer.add_scalar(tag, value, row["step"], walltime=self.started + row.get("seconds", 0))
        self.rows = rows
        self.writer.flush()
        return len(rows)

    def begin(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self.writer is not None:
            self.writer.close()
        shutil.rmtree(self.run / "tensorboard", ignore_errors=True)
        started = (read_record(self.run) or {}).get("started")
        self.started = datetime.strptime(started, "%Y-%m-%dT%H:%M:%S%z").timestamp() if started else 0
        self.writer, self.rows = SummaryWriter(self.run / "tensorboard", purge_step=0), []    # TensorBoard forgets


def export(runs: list[Path], every: float) -> None:
    """Write the events of all runs; every > 0: then those of later steps, every so many seconds, until all are DONE."""
    exports = [Export(run) for run in runs]
    while True:
        done = all((run / "DONE").is_file() for run in runs)        # asked first: DONE comes after the last step
        steps = sum(export.update() for export in exports)
        print(f"{steps} steps: tensorboard --logdir {os.path.commonpath(runs)}", flush=True)
        if done or not every:
            return
        time.sleep(every)
