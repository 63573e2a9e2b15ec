"""transformers' Trainer with steps of `SPZO`: no backward pass, no gradients.

`SPZOTrainer` is the Trainer. `SPZOTrainerMixin` makes one of a trainer that derives from it:

    class SPZOSFTTrainer(SPZOTrainerMixin, SFTTrainer):
        pass
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer

from fedspzo.blocks.cut import split
from fedspzo.blocks.evaluation_mode import evaluating
from fedspzo.blocks.layer_stack import At
from fedspzo.blocks.repeats import TOLERANCE
from fedspzo.blocks.shards import is_sharded
from fedspzo.evaluation.accumulation import weighted_sum
from fedspzo.evaluation.closures import Closure
from fedspzo.optim import SPZO

__all__ = ["SPZOTrainer", "SPZOTrainerMixin"]

Batch = dict[str, Any]


class SPZOTrainerMixin:
    """Gives a transformers Trainer steps of `SPZO`. It stands before the Trainer among the bases.

    A step evaluates the loss of all its `gradient_accumulation_steps` micro-batches together, which
    counts every label alike, and averages it over the processes. No gradient is ever
    computed: `max_grad_norm`, `optim` and `gradient_checkpointing` have nothing to act on. Dropout
    is off in steps. Everything else is the Trainer's: logs, evaluation, callbacks, schedules,
    checkpoints, resumption, which goes on to the same bits, and `load_best_model_at_end`.

    Args:
        args: the Trainer's positional arguments.
        at: where the model is cut, as `blocks.split` takes it. Default "auto".
        spzo: settings of `SPZO`. By default `lr` is the training arguments' `learning_rate`, which
            is block 1's rate, `weight_decay` and `seed` are theirs, and with their `bf16` `eps` is
            5e-3 and `sides` "two". With lr="auto" the schedule is left out.
        kwargs: the Trainer's keyword arguments. `optimizers` may hold an `SPZO` of your own; then
            `at` and `spzo` are not used.

    Raises:
        ValueError: a training argument cannot be followed; the message names it and the remedy.
        TypeError: an optimizer is passed that is not an `SPZO`.
    """

    args: Any
    model: Any
    accelerator: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        *args: Any,
        at: At = "auto",
        spzo: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._spzo_at, self._spzo_settings = at, dict(spzo or {})
        self._micro_batches: list[Batch] = []
        self._spzo_divides: bool | None = None
        super().__init__(*args, **kwargs)
        self._check_spzo_arguments()

    def _check_spzo_arguments(self) -> None:
        own = getattr(self, "optimizer_cls_and_kwargs", None)
        given = self.optimizer if own is None else own[0]
        if given is not None and not isinstance(given, SPZO):
            raise TypeError(
                f"the optimizer is {given!r}; pass optimizers=(SPZO(...), None), or settings of"
                " SPZO as spzo={...}"
            )
        if self.args.world_size > 1 and self.optimizer and self.optimizer.process_group is None:
            raise ValueError(
                f"the optimizer has no process_group, but there are {self.args.world_size}"
                " processes; pass SPZO process_group=torch.distributed.group.WORLD, or leave the"
                " optimizer to SPZOTrainer"
            )
        if getattr(self.args, "fp16", False):
            raise ValueError(
                "fp16 is True, but there are no gradients to scale; pass bf16=True, or load the"
                " model with dtype=torch.float16 and leave fp16 out"
            )
        if getattr(self.args, "neftune_noise_alpha", None) is not None:
            raise ValueError(
                f"neftune_noise_alpha is {self.args.neftune_noise_alpha}, but noise in the"
                " embeddings would differ from evaluation to evaluation of a step; leave it out"
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"n_gpu is {self.args.n_gpu}, which makes the Trainer use nn.DataParallel; start"
                " one process a GPU with torchrun, or show it one GPU with CUDA_VISIBLE_DEVICES"
            )
        for name in ("is_deepspeed_enabled", "is_fsdp_enabled"):
            if getattr(self, name, False):
                raise ValueError(
                    f"{name} is True, but SPZOTrainer shards no weights: forward passes need no"
                    " optimizer state. Leave the plugin out, or shard in a loop of your own"
                )

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Build `SPZO` from the settings, if there is no optimizer yet, and return it.

        On several processes the weights of the first one are sent to the others.

        Raises:
            ValueError: the model is sharded.
        """
        model = self.model if model is None else model
        if any(map(is_sharded, model.parameters())):
            raise ValueError(
                "the model is sharded by fully_shard, but SPZOTrainer neither loads nor saves"
                " shards; leave fully_shard out, or shard in a loop of your own"
            )
        if self.args.world_size > 1:
            with torch.no_grad():
                for tensor in (*model.parameters(), *model.buffers()):
                    dist.broadcast(tensor, 0)
        if self.optimizer is None:
            self.optimizer = SPZO(
                split(model, self._spzo_at), **self._spzo_defaults(), **self._spzo_settings
            )
        return self.optimizer

    def _spzo_defaults(self) -> dict[str, Any]:
        """Return the settings that follow from the training arguments."""
        names = {"lr": "learning_rate", "weight_decay": "weight_decay", "seed": "seed"}
        settings = {name: getattr(self.args, of) for name, of in names.items()}
        if self.args.world_size > 1:
            settings["process_group"] = dist.group.WORLD
        if self.accelerator.mixed_precision == "bf16":  # autocast's losses are coarse
            settings |= {"eps": 5e-3, "sides": "two"}
        return {name: value for name, value in settings.items() if name not in self._spzo_settings}

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        if training and self.args.world_size > 1:
            # not in DistributedDataParallel, whose buckets take as much memory as gradients
            return self.accelerator.prepare_model(model, evaluation_mode=True)
        return super()._wrap_model(model, training, dataloader)  # type: ignore[misc]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the schedule. The rates that lr="auto" finds are only reported."""
        if self.lr_scheduler is None and self._spzo.auto is not None:
            self.lr_scheduler = _FoundRates(self.optimizer)
            self._created_lr_scheduler = True
            return self.lr_scheduler
        return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the later blocks' rates beside block 1's, and no norm of gradients."""
        logs.pop("grad_norm", None)
        if "learning_rate" in logs and self._spzo.last_step is not None:
            for number, rate in enumerate(self._spzo.last_step.lr[1:], 2):
                logs[f"learning_rate_block_{number}"] = rate
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    @property
    def _spzo(self) -> SPZO:
        """The optimizer itself, inside accelerate's wrapper."""
        found: SPZO = getattr(self.optimizer, "optimizer", self.optimizer)
        return found

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Fetch a step's micro-batches, and forget those of a step that was broken off."""
        self._micro_batches = []
        return super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]

    def training_step(
        self,
        model: nn.Module,
        inputs: Batch,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Take a micro-batch, and the step when it is the last of it.

        Returns:
            The step's loss, a scalar; 0 for the micro-batches before the last one.
        """
        model.train()
        self._micro_batches.append(self._prepare_inputs(inputs))  # type: ignore[attr-defined]
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        batches, self._micro_batches = self._micro_batches, []
        items = self._items_of_losses(model, batches, num_items_in_batch)
        shares = self._micro_batch_shares(batches, items)
        loss_of = partial(self._micro_batch_loss, model, items=items)
        evaluate = weighted_sum([partial(loss_of, batch) for batch in batches], shares)
        calls = 0

        def closure() -> Tensor | float:
            nonlocal calls
            calls += 1
            with self._metrics_kept_once(first=calls == 1):
                return evaluate()

        optimizer = self._spzo
        loss = optimizer.step(closure)
        optimizer.step = _Taken(optimizer)  # type: ignore[method-assign, assignment]
        return torch.tensor(loss, device=self.args.device)

    def _micro_batch_loss(
        self, model: nn.Module, batch: Batch, items: Tensor | int | None
    ) -> Tensor:
        with self.compute_loss_context_manager():  # type: ignore[attr-defined]
            # a copy, as compute_loss takes the labels out of it
            loss: Tensor = self.compute_loss(  # type: ignore[attr-defined]
                model, dict(batch), num_items_in_batch=items
            )
        return loss

    def _items_of_losses(
        self, model: nn.Module, batches: Sequence[Batch], items: Tensor | int | None
    ) -> Tensor | int | None:
        """Return the number of labels that losses are divided by; None if they are means.

        transformers passes the number to every model that takes any keywords, and many return a
        mean all the same. So one loss is computed with two numbers, once, where it matters.

        Args:
            model: the model.
            batches: the step's micro-batches.
            items: number of labels in all of them; None if it was not counted.
        """
        if items is None or getattr(self, "loss_is_scaled_for_ga", None) is not None:
            return items
        if not (self.model_accepts_loss_kwargs or self.compute_loss_func):  # type: ignore[attr-defined]
            return None
        counts = self._label_counts(batches)
        most = max(range(len(batches)), key=counts.__getitem__)
        alone = len(batches) == 1 and self.args.world_size == 1
        # all processes evaluate or none, as a loss may gather metrics, and all decide alike
        if self._spzo_divides is None and not alone and self._everywhere(counts[most] > 0):
            once = self._metrics_kept_once(first=False)
            with torch.no_grad(), evaluating(model), once:
                one, other = (
                    self._micro_batch_loss(model, batches[most], number).item()
                    for number in (items, 2 * items)
                )
            if self._everywhere(math.isfinite(one) and one != 0):
                # off the CPU a mean may be rounded otherwise the second time
                same = math.isclose(one, other, rel_tol=TOLERANCE)
                self._spzo_divides = not self._everywhere(same)
        return None if self._spzo_divides is False else items

    def _everywhere(self, fact: bool) -> bool:
        """Tell whether something holds in all processes."""
        known = torch.tensor(fact, dtype=torch.int32, device=self.args.device)
        if self.args.world_size > 1:
            dist.all_reduce(known, dist.ReduceOp.MIN)
        return bool(known)

    def _micro_batch_shares(
        self, batches: Sequence[Batch], items: Tensor | int | None
    ) -> list[float]:
        """Return the weight of each micro-batch's loss in the step's loss.

        A loss that is already divided by the number of all labels counts 1. A mean over one
        micro-batch's labels counts by the number of these, and without any it does not count.

        Args:
            batches: the step's micro-batches.
            items: the number of labels that losses are divided by; None if they are means.
        """
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            custom = self.compute_loss_func is not None  # type: ignore[attr-defined]
            scaled = items is not None or (custom and self._spzo_divides is not False)
        if scaled:
            return [1.0] * len(batches)
        counts = self._label_counts(batches)
        if not any(counts):
            counts = [1] * len(batches)
        return [count / sum(counts) for count in counts]

    def _label_counts(self, batches: Sequence[Batch]) -> list[int]:
        """Return the number of labels in each micro-batch."""
        labels = [batch.get("labels") for batch in batches]
        if getattr(self, "_loss_shifts_labels", False):  # nothing predicts a row's first label
            labels = [x[..., 1:] if isinstance(x, Tensor) else x for x in labels]
        return [int((x != -100).sum()) if isinstance(x, Tensor) else 0 for x in labels]

    @contextmanager
    def _metrics_kept_once(self, *, first: bool) -> Iterator[None]:
        """Let TRL's trainers, which keep metrics of every loss, keep those of a step's first one.

        They file them by whether the model is in training mode, so that flag is set while they
        compute a loss, but for the model's own forward.
        """
        metrics = getattr(self, "_metrics", None)
        if metrics is None:
            yield
            return
        kept = None if first else deepcopy(metrics)
        model = self.model
        hooks = (
            model.register_forward_pre_hook(lambda *_: setattr(model, "training", False)),
            model.register_forward_hook(lambda *_: setattr(model, "training", first)),
        )
        model.training = first
        try:
            yield
        finally:
            model.training = False
            for hook in hooks:
                hook.remove()
            if kept is not None:
                self._metrics = kept


class SPZOTrainer(SPZOTrainerMixin, Trainer):
    """Trainer of transformers with steps of `SPZO`; `SPZOTrainerMixin` has the arguments."""


class _Taken:
    """Stands for an optimizer's `step` until the next call of it, which takes none.

    The training loop makes that call by itself, without a closure. One with a closure takes a step.
    """

    def __init__(self, optimizer: SPZO) -> None:
        self._optimizer, self._step = optimizer, optimizer.step

    def __call__(self, closure: Closure | None = None) -> float | None:
        self._optimizer.step = self._step  # type: ignore[method-assign]
        return None if closure is None else self._step(closure)


class _FoundRates(LRScheduler):
    """Reports the learning rates that lr="auto" finds, and changes none."""

    def get_lr(self) -> list[float | Tensor]:
        return [group["lr"] for group in self.optimizer.param_groups]
