"""DeepSpeed behind four verbs: forward, backward, step, and the state to save and load.

The only importer of deepspeed. The one convention that everything else relies on: the loss given to `backward` is
this worker's share of the mean over the *global* batch, and the gradient is the plain sum of all shares, for every
number of workers and micro-batches.
"""

import argparse
import contextlib
import functools
import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zfdist import malloc, optimizer
from zfdist.config import EngineConfig, OptimConfig
from zfdist.errors import ZfdistError
from zfdist.loss_scale import LossScale
from zfdist.model.kernels import cuda_graphs, matmul_backend
from zfdist.model.kernels.mixed_precision import OPERANDS
from zfdist.profile import spanned
from zfdist.readback import Readback
from zfdist.world import World

OPTIMIZER = "torch.optim.Adam"
"""What every device and ZeRO stage trains with, as manifests of checkpoints call it; it needs no CUDA toolkit."""

_MOST_IN_A_BUCKET = 500_000_000  # gradients that are reduced together: DeepSpeed's own default


class EngineError(ZfdistError):
    """A state that this engine cannot load; the message names both sides and the remedy."""


class Update(NamedTuple):
    """What one optimizer step did."""

    grad_norm: float
    """Global norm before clipping; inf or nan where skipped."""
    skipped: bool
    """True where a loss or gradient of any worker was not finite: no worker changed anything."""


class Engine:
    """A network under DeepSpeed's optimizer, sharding, clipping and precision."""

    def __init__(self, module: nn.Module, config: EngineConfig, optim: OptimConfig, world: World) -> None:
        """Wrap `module`; moves it to the worker's device. Every worker must do this together."""
        self._world, self.device = world, world.device
        self._scale = float(world.size * config.accumulation_steps)
        self._clip_norm = optim.clip_norm
        self._adam = optimizer.adam_settings(optim)
        self.zero_stage = config.zero_stage
        self._config = config
        self.precision = config.precision_on(world.device.type)
        self._settings = contextlib.ExitStack()  # of the process and the module, put back by `close`
        operand = OPERANDS[self.precision]
        if operand != torch.float32:
            # Here and not by DeepSpeed, which would reduce gradients in 16 bits as well.
            module.forward = torch.autocast(world.device.type, operand)(module.forward)
            self._settings.callback(module.__dict__.pop, "forward")
        weights = sum(parameter.numel() for parameter in module.parameters())
        deepspeed = _import_deepspeed(world.device)
        with _quiet(), optimizer.without_compiler():
            self._engine, *_ = deepspeed.initialize(
                model=module,
                model_parameters=list(module.parameters()),
                optimizer=functools.partial(optimizer.adam, self._adam),
                config=_deepspeed_config(config, optim, world, weights),
                dist_init_required=False,
            )
        # Told apart from the backward pass that it ends.
        self._engine.allreduce_gradients = spanned("gradient reduction")(self._engine.allreduce_gradients)
        self._scale_loss_by(LossScale() if self.precision == "fp16" else LossScale(1.0))
        if world.device.type == "cpu":
            self._settings.enter_context(malloc.freed_is_kept())
        self._settings.callback(cuda_graphs.forget)
        how = matmul_backend.float32(world.device, self.precision, onednn=config.matmul == "auto")
        self.products = self._settings.enter_context(how)

    def forward(self, *inputs: Tensor) -> Any:
        """Run the network under the precision of the config."""
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this micro-batch's share of the loss.

        A non-finite loss is turned into a non-finite gradient of everything, so that the one check of the reduced
        gradient in `step` makes all workers skip together, without a message of their own.
        """
        poison = torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
        scale = 1.0 if self.zero_stage else self._loss_scale.value  # above 0 DeepSpeed multiplies by it
        # DeepSpeed averages over workers and micro-batches; ours is a sum.
        self._engine.backward(loss * poison * self._scale * scale)

    def step(self, learning_rate: float) -> Callable[[], Update] | None:
        """Close a micro-batch; at the last one of the step update the weights, otherwise return None.

        What is returned tells what became of it, and waits for the device to have come so far.
        """
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
            return None
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        update = self._sharded_step() if self.zero_stage else self._replicated_step()
        if self.precision == "fp16":
            self._scale_loss_by(self._loss_scale.after(skipped=update().skipped))
        return update

    def _sharded_step(self) -> Callable[[], Update]:
        self._engine.step()  # which waits for both
        update = Update(float(self._engine.get_global_grad_norm()), bool(self._engine.optimizer.overflow))
        return lambda: update

    def _replicated_step(self) -> Callable[[], Update]:
        """Stage 0 checks and clips here, since DeepSpeed only does both when it shards the optimizer.

        On the device, so that nobody waits: told that a gradient is not finite, Adam leaves weights, moments and
        counts as they are.
        """
        parameters = [p for p in self._engine.module.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self._loss_scale.value != 1.0:
            torch._foreach_div_(gradients, self._loss_scale.value)
        norm = torch.nn.utils.get_total_norm(gradients)
        skips = torch.logical_not(torch.isfinite(norm)).float()
        self._engine.basic_optimizer.found_inf = skips
        if self._clip_norm:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, norm)
        self._engine.step()
        numbers = Readback(torch.stack([norm, skips.to(norm.dtype)]))

        def told() -> Update:
            grad_norm, skipped = numbers.values()
            return Update(grad_norm, bool(skipped))

        return told

    def _scale_loss_by(self, scale: LossScale) -> None:
        """From here on; DeepSpeed's own dynamic scale would divide by the new one what the old one has multiplied."""
        self._loss_scale = scale
        if self.zero_stage:
            self._engine.optimizer.loss_scale = scale.value

    @property
    def loss_scale(self) -> float:
        """Factor on the loss, which its gradients are divided by again: 1 but under fp16."""
        return self._loss_scale.value

    def weights(self) -> dict[str, Tensor] | None:
        """Return all weights in fp32 on the CPU by name, on rank 0; None elsewhere. All workers must call it."""
        if self.zero_stage == 3:
            gathered = self._engine._zero3_consolidated_16bit_state_dict()
            return gathered and {name: w.detach().float().cpu().contiguous() for name, w in gathered.items()}
        if self._world.rank != 0:
            return None
        state = self._engine.module.state_dict()
        return {name: w.detach().to("cpu", torch.float32, copy=True).contiguous() for name, w in state.items()}

    def save(self, folder: Path) -> None:
        """Write this worker's native DeepSpeed shards below `folder`; all workers must call it."""
        with _quiet():
            state = {"loss_scale": tuple(self._loss_scale)}
            self._engine.save_checkpoint(str(folder), tag="state", client_state=state, save_latest=False)

    def load(
        self, folder: Path, *, saved_world_size: int, saved_zero_stage: int, scratch: Path, converts: bool
    ) -> None:
        """Load what `save` wrote at any world size; all workers must call it.

        At the world size and stage that it was saved with, the result is bit-equal. Otherwise it goes through
        DeepSpeed's universal checkpoint, for ZeRO 1 and 2; ZeRO 0 loads as it is. It is written below `scratch` by the
        one of those workers that share that folder who `converts`.

        Raises:
            EngineError: if the pair of stages or of world sizes is one that DeepSpeed cannot convert.
        """
        how = self._config.loading(saved_zero_stage, saved_world_size, self._world.size)
        universal = how == "converted"
        if how is None:
            raise EngineError(
                f"the checkpoint was written by {saved_world_size} workers with engine.zero_stage = {saved_zero_stage} "
                f"and cannot be read by {self._world.size} with engine.zero_stage = {self.zero_stage}: use the same "
                "number and stage, or start a new run from its weights with --from"
            )
        with _without_wildcards(folder) as saved, _without_wildcards(scratch.parent) as beside, _quiet():
            tag = "state"
            if universal:
                saved, tag = self._to_universal(saved / tag, beside / scratch.name, converts), "universal"
            self._engine._config.load_universal_checkpoint = universal
            path, client_state = self._engine.load_checkpoint(str(saved), tag=tag)
        # Left on, ZeRO 3 would later save incomplete shards.
        self._engine._config.load_universal_checkpoint = False
        if path is None:
            raise EngineError(f"DeepSpeed could not read {folder}")
        self._optimize_as_configured()
        if self.precision == "fp16":
            self._scale_loss_by(LossScale(*client_state["loss_scale"]))

    def _optimize_as_configured(self) -> None:
        """Give Adam this run's settings: what was loaded brings along those of the run, and the program, that saved."""
        adam = self._engine.basic_optimizer
        for group in adam.param_groups:
            group.update(self._adam)
        for parameter, state in adam.state.items():  # a universal checkpoint leaves the counts on the CPU
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)

    def _to_universal(self, state: Path, scratch: Path, converts: bool) -> Path:
        if converts:
            from deepspeed.checkpoint import ds_to_universal

            options = argparse.Namespace(
                input_folder=str(state),
                output_folder=str(scratch / "universal"),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
            ds_to_universal.main(options)
        self._world.barrier()
        return scratch

    def close(self) -> None:
        """Free DeepSpeed's hooks and buffers, and put settings of the process back."""
        self._settings.close()
        self._engine.destroy()


def _deepspeed_config(config: EngineConfig, optim: OptimConfig, world: World, weights: int) -> dict[str, Any]:
    # Batch sizes are bookkeeping only: shares may be uneven, and `backward` gets sums over the global batch.
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.accumulation_steps,
        "train_batch_size": config.accumulation_steps * world.size,
        "gradient_clipping": optim.clip_norm if config.zero_stage else 0.0,
        "steps_per_print": None,
        # The bucket is allocated at every step: at its default of 2 GB more than zfdist.malloc can keep.
        "zero_optimization": {"stage": config.zero_stage, "reduce_bucket_size": min(weights, _MOST_IN_A_BUCKET)},
    }


def _import_deepspeed(device: torch.device) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if device.type == "cuda" else "cpu")
    # DeepSpeed takes this for the device ordinal, which is another number where workers share or hide GPUs.
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    with _quiet():
        import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # An extension for inference alone: building it would cost 20 s and ask for a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextlib.contextmanager
def _without_wildcards(folder: Path) -> Iterator[Path]:
    """Give a path to the folder in which no [ stands: DeepSpeed looks for files by patterns."""
    if "[" not in str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place, folder.name.replace("[", "_"))
        link.symlink_to(folder.absolute())
        yield link


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep DeepSpeed's prints off the user's terminal; its errors are exceptions."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
