"""What became of an update: counted, and told where it was skipped, once the device has made it.

That is one update later than the loop has asked for it, so that the device never waits for the host; and before
anything that is written about it: a line of metrics, a validation, a checkpoint.
"""

import torch

from zfdist.build import Run, Unread
from zfdist.run_protocol import NonFiniteError


def read_back(run: Run) -> None:
    """Count the newest update that was not read back, if there is one; waits for the device to have made it."""
    if run.unread is None:
        return
    unread, run.unread = run.unread, None
    update, first = unread.update(), unread.micro_batches[0]
    run.meter.count(
        sequences=first.num_sequences, frames=first.num_frames, grad_norm=update.grad_norm, skipped=update.skipped
    )
    if update.skipped:
        _skipped(run, unread)
        return
    run.skipped_in_a_row = 0
    for loss in unread.losses:
        run.meter.add(loss.sums)


def _skipped(run: Run, unread: Unread) -> None:
    """Say which terms and sequences made all workers skip this update; give up after too many in a row."""
    step, micro_batches, losses, _, loss_scale = unread
    run.skipped_in_a_row += 1
    bad_terms = {name for loss in losses for name, value in loss.sums.items() if not torch.isfinite(value)}
    bad_ids = {
        int(i)
        for batch, loss in zip(micro_batches, losses, strict=True)
        for i in batch.ids_B[~torch.isfinite(loss.elbo_B)].tolist()
        if i >= 0
    }
    everyone = run.world.gather((sorted(bad_terms), sorted(bad_ids)))
    terms = sorted({term for worker_terms, _ in everyone for term in worker_terms}) or ["gradient"]
    ids = sorted({i for _, worker_ids in everyone for i in worker_ids})
    line = {"skipped/terms": terms, "skipped/sequence_ids": ids, "skipped/in_a_row": run.skipped_in_a_row}
    if run.log:
        run.log.write(step, line | loss_scale)
    if run.skipped_in_a_row >= run.config.engine.max_nonfinite_steps:
        raise NonFiniteError(
            f"step {step + 1}: {run.skipped_in_a_row} updates in a row had a non-finite {', '.join(terms)}"
            + (f" (sequences {ids[:20]})" if ids else "")
            + "; lower optim.learning_rate or optim.clip_norm, or look at these sequences"
        )


def loss_scale(run: Run) -> dict[str, float]:
    """Return that of the next update, under fp16."""
    return {"optim/loss_scale": run.engine.loss_scale} if run.engine.precision == "fp16" else {}
