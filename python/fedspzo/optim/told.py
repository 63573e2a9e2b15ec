"""What a step warns of, once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch.distributed as dist

from fedspzo.auto_lr.central import CentralPolicy
from fedspzo.auto_lr.constants import START
from fedspzo.estimators.step_report import StepReport

from .param_groups import Group


class Told:
    """Gives an optimizer's warnings, each of them once."""

    def __init__(self) -> None:
        self._of_rates = self._of_processes = False

    def of_unused_rates(self, auto: CentralPolicy | None, groups: Sequence[Group]) -> None:
        """Warn if something else than lr="auto" has set the rates that it finds."""
        if auto is None or self._of_rates:
            return
        found = auto.rates if auto.blocks else (START,) * len(groups)
        rates = tuple(group["lr"] for group in groups)
        if rates != found:
            self._of_rates = True
            warnings.warn(
                f"lr='auto' finds the rates, and sets those that something else has set anew:"
                f" {rates}. Leave the scheduler out, or pass a rate as lr",
                stacklevel=5,
            )

    def of_processes_apart(self) -> None:
        """Warn that each of several processes seems to train a model of its own."""
        if self._of_processes:
            return
        self._of_processes = True
        warnings.warn(
            f"torch.distributed has {dist.get_world_size()} processes, but SPZO has no"
            " process_group, and the model is neither in DistributedDataParallel nor sharded:"
            " unless the closure averages the loss over the processes, each of them trains a model"
            " of its own. To train one model, pass process_group=torch.distributed.group.WORLD, and"
            " read it after init_process_group, as it is None before",
            stacklevel=5,
        )

    def of_skip(self, report: StepReport, skipped: int) -> None:
        """Warn of the first step that was skipped.

        Args:
            report: the step.
            skipped: number of steps skipped so far, with this one.
        """
        if skipped == 1:
            warnings.warn(
                f"step {report.step} was skipped: losses {report.losses} or their differences are"
                " not finite. Later skips are counted in `skipped` without a warning",
                stacklevel=3,
            )
