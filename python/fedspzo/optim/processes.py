"""Several processes that take the same steps: they average losses, and agree on all else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fedspzo.blocks.shards import is_sharded, mesh_group


class Processes:
    """The processes that take a step together, by exchanging scalars.

    Args:
        group: their process group; None: this process takes its steps by itself, unless it shares
            its model with others, which is found out.

    Attributes:
        must_meet: the processes have to `meet` before the next step, as it is the first one, or
            as the last one failed.
        apart: the first evaluation has shown no sign that the processes train one model.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        # the processes that share the model without a process group, once that is found out
        self._sharing: dist.ProcessGroup | None = None
        self._compared = False
        self._device = torch.device("cpu")
        self._step, self._evaluation = 0, 0
        self.must_meet = True
        self.apart = False

    def meet(self, parameters: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        """Check before the first step, and after one that failed, that all can take the same step.

        They need the same weights and settings.

        Args:
            parameters: the model's parameters by name, or the trained ones.
            settings: what all steps follow from, by name.

        Raises:
            ValueError: one of them differs; the message names it. Or this process is not in the
                group.
        """
        self._device = next(iter(parameters.values())).device
        if self._group is None:
            self._sharing = mesh_group(parameters.values()) if _several() else None
            self._compared = False
            return
        if dist.get_rank(self._group) < 0:
            raise ValueError(
                "this process is not in its process_group; pass each process one that holds it"
            )
        alone = {f"weights of {n!r}": p for n, p in parameters.items() if not is_sharded(p)}
        mine = dict(settings) | {name: _fingerprint(p) for name, p in alone.items()}
        every = _objects(mine, self._group)
        for name, first in every[0].items():
            values = [other.get(name) for other in every]
            if any(value != first for value in values):
                shown = "" if name in alone else f": {values}"
                raise ValueError(
                    f"the processes differ in {name}{shown}. Build the optimizer with the same"
                    " settings and from the same weights everywhere: call torch.manual_seed before"
                    " a layer is made anew, or broadcast its weights"
                )

    @property
    def alone(self) -> bool:
        """Tell whether this is the only process."""
        return self._group is None and not _several()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See whether a DistributedDataParallel runs inside the `with` block, or around it."""
        if self._group is not None or not _several():
            yield
            return

        def see(module: nn.Module | None, _: Any = None) -> None:
            if isinstance(module, nn.parallel.DistributedDataParallel):
                self._sharing = module.process_group

        # Lightning takes its steps inside the wrapper's forward
        see(getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None))
        hook = nn.modules.module.register_module_forward_pre_hook(see)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Take a step inside the `with` block. If it fails in one process, it fails in all.

        Args:
            number: the step's number, which has to be the same in all.
        """
        self._step, self._evaluation = number, 0
        met, self.must_meet = self.must_meet, False
        try:
            yield
        except BaseException:
            if self._group is None:
                self.must_meet = met
            elif not self.must_meet:  # this process knows of the failure alone
                # the others wait for a loss, and would take one of a later step for it
                with suppress(Exception):  # they may have ended, and the error to raise says more
                    self._exchanged(torch.zeros(()), failed=True)
            raise

    def joined(self, loss: Tensor) -> Tensor:
        """Return the mean of the processes' losses, a scalar, in float32 at least.

        Without a process group it is this process's loss, and the first one is compared with those
        of the processes that share the model.

        Raises:
            RuntimeError: they differ, and would lead to other weights on every process. Or the step
                failed in another process, or that one is at another evaluation.
        """
        if self._group is not None:
            every = self._exchanged(loss)
            mean = every.sum() / len(every)
            return mean.to(torch.promote_types(loss.dtype, torch.float32))
        if self._compared or loss.dim():
            return loss
        self._compared = True
        self.apart = self._sharing is None and _several()
        if self._sharing is not None:
            every = _gathered(self._on_device(loss), self._sharing).flatten()
            if (every != every[0]).any():
                raise RuntimeError(
                    f"the processes that share the model have losses {every.tolist()}, and would"
                    " train a model each; pass process_group=torch.distributed.group.WORLD to SPZO,"
                    " which averages them"
                )
        return loss

    def _exchanged(self, loss: Tensor, *, failed: bool = False) -> Tensor:
        """Return every process's loss, in float64, (processes,): the same bits on all.

        Args:
            loss: this process's loss, a scalar.
            failed: the step has failed in this process, which has no loss.

        Raises:
            RuntimeError: it has failed in a process, or the processes are at different evaluations.
                All of them raise this.
        """
        assert self._group is not None
        self.must_meet = True  # unless all is well
        place = torch.tensor([float(self._step), self._evaluation, failed], dtype=torch.float64)
        mine = torch.cat([self._on_device(loss), place.to(self._device, non_blocking=True)])
        every = _gathered(mine, self._group)
        places = [tuple(row) for row in every[:, 1:].tolist()]
        broken = [process for process, (*_, flag) in enumerate(places) if flag]
        if broken:
            step, where = places[broken[0]][0], ", ".join(map(str, broken))
            raise RuntimeError(
                f"step {step:.0f} failed in process {where}, whose own error says why, and is not"
                " taken. To go on with the next batch, catch this error as well as that one, in all"
                " processes: `except RuntimeError` catches a torch.OutOfMemoryError too"
            )
        if len(set(places)) > 1:
            pairs = [f"{step:.0f}, {evaluation:.0f}" for step, evaluation, _ in places]
            found = "; ".join(f"process {process}: {at}" for process, at in enumerate(pairs))
            raise RuntimeError(
                f"the processes are at different evaluations (step, evaluation in it: {found}), so"
                " that their losses have no mean. Call `step` as often in every process: a batch"
                " that one leaves out, all leave out"
            )
        self._evaluation += 1
        self.must_meet = False
        return every[:, 0].contiguous()  # as a sum over a strided column may round otherwise

    def _on_device(self, loss: Tensor) -> Tensor:
        return loss.detach().to(self._device, torch.float64).reshape(1)

    def agreed(self, value: Any) -> Any:
        """Return the first process's value on all of them, also of those that share the model."""
        group = self._group or self._sharing
        return value if group is None else _objects(value, group)[0]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _gathered(mine: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return every process's numbers, (processes, numbers): the same bits on all."""
    processes = dist.get_world_size(group)
    every = mine.new_empty(processes * len(mine))
    dist.all_gather_into_tensor(every, mine, group=group)
    return every.view(processes, len(mine))


def _objects(value: Any, group: dist.ProcessGroup) -> list[Any]:
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, value, group=group)
    return every


def _fingerprint(tensor: Tensor) -> int:
    """Return a number that other bits of a tensor do not give, but for a rare chance."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(tensor.element_size(), torch.int64)
    return int(tensor.detach().contiguous().view(words).sum(dtype=torch.int64))
