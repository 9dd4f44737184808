"""The DeepSpeed engine, ZeRO 0 to 3; the rules it keeps were measured on DeepSpeed 0.19.8.

- Accumulation is left to the caller (`managed_gradient_accumulation: false`): gradients are reduced and used
  when `step` is called, so the number of backwards may vary.
- Clipping is always stated; DeepSpeed's own default is 1.0. Under stage 0 it is done here, because DeepSpeed
  reports no gradient norm there.
- Weights are fp32 and autocast sits inside the module; DeepSpeed's bf16 mode would cast adapters as well.
- On the CPU, DeepSpeed would compile a shared-memory operation for minutes at first use; gloo does without.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidalign.engine import distributed, zero3
from vidalign.engine.base import Engine
from vidalign.engine.config import INSTALL, MISSING, EngineConfig, OptimizerConfig
from vidalign.engine.optimizers import make_optimizer, make_schedule
from vidalign.errors import CheckpointError, UserError

FOLDER = "deepspeed"


class DeepSpeedEngine(Engine):
    """`weights_are_swapped`: whole weight sets take turns in the network, so nothing may be fetched ahead."""

    def __init__(
        self,
        network: nn.Module,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        total_steps: int,
        *,
        weights_are_swapped: bool = False,
    ) -> None:
        super().__init__(network, config)
        deepspeed = _prepare()
        basic = make_optimizer(optimizer, self.named_trainable())
        if config.zero_stage == 0:
            basic.register_step_pre_hook(lambda *_: self._clip(optimizer.clip))
        self.norm = math.nan
        self.deepspeed, _, _, _ = deepspeed.initialize(
            model=self.dispatch,
            optimizer=basic,
            lr_scheduler=make_schedule(optimizer, basic, total_steps),
            config=_settings(config, optimizer, weights_are_swapped),
            dist_init_required=False,
        )

    @property
    def learning_rate(self) -> float:
        return float(self.deepspeed.get_lr()[0])

    def _entry(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.deepspeed(name, *args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        self.deepspeed.backward(loss)

    def _update(self) -> float:
        self.deepspeed.step()
        self.steps += 1
        if self.config.zero_stage == 0:
            return self.norm
        if not self.deepspeed.was_step_applied():  # not finite; the schedule follows the steps all the same
            self.deepspeed.lr_scheduler.step()
            return math.nan
        return float(self.deepspeed.get_global_grad_norm())

    def zero_grad(self) -> None:
        if self.config.zero_stage:
            self.deepspeed.optimizer.zero_grad()
        else:
            self.deepspeed.zero_grad()

    def save(self, directory: Path) -> None:
        keeper = _Recorder(self.deepspeed.checkpoint_engine)
        self.deepspeed.checkpoint_engine = keeper
        try:
            with self._trainable():
                self.deepspeed.save_checkpoint(
                    str(directory),
                    tag=FOLDER,
                    client_state={"steps": self.steps},
                    save_latest=False,
                    exclude_frozen_parameters=True,
                )
        finally:
            self.deepspeed.checkpoint_engine = keeper.inner
        if keeper.failure is not None:
            raise keeper.failure

    def load(self, directory: Path) -> None:
        with self._trainable():
            path, state = self.deepspeed.load_checkpoint(str(directory), tag=FOLDER, load_module_strict=False)
        if path is None:
            raise CheckpointError("no DeepSpeed state in the checkpoint", where=str(directory))
        self.steps = state["steps"]

    @contextmanager
    def gathered(self) -> Iterator[None]:
        parameters: list[Any] = [p for p in self.network.parameters() if zero3.is_divided(p)]
        if not parameters:
            yield
            return
        coordinator = self.deepspeed.optimizer.parameter_offload.get_param_coordinator()
        if not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()
        coordinator.reset_step = lambda: None  # it would record a trace, which differs between ranks in a generation
        for parameter in parameters:
            parameter.ds_active_sub_modules.add(zero3.KEPT)
        parameters[0].all_gather(param_list=parameters)
        try:
            yield
        finally:
            del coordinator.reset_step
            for parameter in parameters:
                parameter.ds_active_sub_modules.discard(zero3.KEPT)
            zero3.invalidate(parameters)

    @contextmanager
    def _trainable(self) -> Iterator[None]:
        """Unfrozen meanwhile: DeepSpeed leaves out of a checkpoint what requires no gradient right now."""
        flags = [p.requires_grad for p in self.trainable]
        self.unfreeze()
        try:
            yield
        finally:
            for parameter, flag in zip(self.trainable, flags, strict=True):
                parameter.requires_grad_(flag)

    def _clip(self, limit: float) -> None:
        """What ZeRO does in its own step: missing gradients are zero, clip, and drop what is not finite."""
        for parameter in self.trainable:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.norm = float(nn.utils.clip_grad_norm_(self.trainable, limit or math.inf))
        if not math.isfinite(self.norm):
            self.deepspeed.zero_grad()


def read_weights(directory: Path) -> dict[str, Tensor]:
    """The trained weights that `DeepSpeedEngine.save` wrote, without an engine; this unpickles, so it runs code."""
    file = directory / FOLDER / "mp_rank_00_model_states.pt"
    if not file.is_file():
        raise CheckpointError(
            "the weights cannot be read from this checkpoint",
            where=str(directory),
            why="ZeRO-3 divides them among its processes",
            fix="use the student at the end of the run, without --step",
        )
    try:
        module = torch.load(file, map_location="cpu", weights_only=False)["module"]
        return {name.removeprefix("network."): weight for name, weight in module.items()}
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, pickle.UnpicklingError) as error:
        raise CheckpointError("cannot read a checkpoint file", where=str(file), why=str(error)) from error


class _Recorder:
    """DeepSpeed's checkpoint writer; remembers an error until all ranks have passed DeepSpeed's barriers."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.failure: Exception | None = None

    def save(self, state_dict: Any, path: str) -> None:
        try:
            self.inner.save(state_dict, path)
        except (OSError, RuntimeError) as error:
            self.failure = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _prepare() -> Any:
    """Import DeepSpeed, quietly, with a process group in place."""
    os.environ.setdefault("DS_ACCELERATOR", distributed.device().type)
    try:
        import deepspeed
    except ImportError as error:
        raise UserError(MISSING, where="engine.name", why=str(error), fix=INSTALL) from error
    deepspeed.utils.logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*deprecated", FutureWarning)  # DeepSpeed's calls
    distributed.setup(single=True)
    if distributed.device().type == "cpu":
        vars(deepspeed.ops)["__compatible_ops__"] = {}  # neither probe compilers nor compile
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _settings(config: EngineConfig, optimizer: OptimizerConfig, weights_are_swapped: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero_stage, "overlap_comm": False}
    if config.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    if weights_are_swapped:
        zero["stage3_prefetch_bucket_size"] = 0
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": optimizer.clip if config.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
