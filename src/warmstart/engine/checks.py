"""What only the data, the model and the plan together can contradict; told before the first step."""

from __future__ import annotations

from warmstart.engine.job import Job
from warmstart.errors import UserError


def check_settings(job: Job) -> None:
    """Raises UserError for settings that this data set, model or plan cannot have."""
    num = len(job.dataset.splits["train"])
    if job.config.data.sampler == "balanced" and job.dataset.splits["train"].targets.ndim > 1:
        raise UserError(
            "--sampler balanced needs one class per image, and these images have several labels",
            "--sampler shuffle",
            "--class-weights balanced weighs rare labels instead",
        )
    has_live_norms = any(row.norms == "train" for row in job.plan.rows)
    if has_live_norms and min(num, job.config.data.batch_size) < 2 * job.world.size > 2:
        raise UserError(
            f"BatchNorm layers cannot learn from single images, and --batch-size {job.config.data.batch_size} is "
            f"divided among {job.world.size} processes",
            f"--batch-size {2 * job.world.size} or more",
            "or hold the norms still with --freeze-bn",
        )
    if has_live_norms and min(num, job.config.data.batch_size) == 1:
        raise UserError(
            "BatchNorm layers cannot learn from batches of one image",
            "--batch-size 2 or more and at least 2 training images",
            "or hold the norms still with --freeze-bn",
        )
    if "val" not in job.dataset.splits:
        needy = {
            "--patience": job.config.train.patience is not None,
            "--scheduler plateau": job.config.optim.scheduler == "plateau",
        }
        for setting in (name for name, is_set in needy.items() if is_set):
            raise UserError(
                f"{setting} needs validation images, and there are none", "a val split", "raise --val-ratio"
            )
