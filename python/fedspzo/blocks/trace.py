"""Trace one forward pass: the order in which a model runs its layers and uses its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from .evaluation_mode import eager, evaluating
from .shadow import on_return
from .touched import Touched


class Trace(Touched):
    """Records one forward pass inside the `with` block.

    Args:
        model: the model that runs.
        modules: the modules whose returns are recorded.

    Attributes:
        first_use: for each parameter that was used, under one of its names, the number of returns
            before its first use.
        returns: the modules in the order in which they returned, each call once.
        complete: the forward pass came to its end.
    """

    def __init__(self, model: nn.Module, modules: Iterable[nn.Module]) -> None:
        super().__init__(dict(model.named_parameters(remove_duplicate=False)))
        self.first_use: dict[str, int] = {}
        self.returns: list[nn.Module] = []
        self.complete = False
        self._modules = list(modules)

    def __enter__(self) -> Trace:
        for module in self._modules:
            self._shadows.enter_context(on_return(module, self.returns.append))
        super().__enter__()
        return self

    def _touch(self, name: str) -> None:
        self.first_use.setdefault(name, len(self.returns))

    def used_before(self, end: nn.Module) -> set[str] | None:
        """Return the names of the parameters used until a module first returns; None: never."""
        if end not in self.returns:
            return None
        time = self.returns.index(end)
        return {name for name, first in self.first_use.items() if first <= time}

    @property
    def loops(self) -> bool:
        """Some module returned more than once."""
        return len(set(self.returns)) < len(self.returns)


def trace(
    model: nn.Module, modules: Iterable[nn.Module], example: Mapping[str, Any] | None
) -> Trace | None:
    """Run the model once without gradients, and return what it did.

    Args:
        model: the model.
        modules: the modules whose returns are recorded.
        example: keyword arguments of the forward pass. None: a few made-up tokens or one made-up
            image, if it is a Hugging Face model of these.

    Returns:
        The trace, or None, with a warning, if no module of `modules` returned, or if there is
        nothing to run the model on.
    """
    if example is None and (example := _made_up(model)) is None:
        return None
    record = Trace(model, modules)
    problem = "runs no layer of a stack"
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(eager())
        try:
            with record:
                model(**example)
            record.complete = True
        except Exception as error:
            # foreign model code may fail in any way on made-up input
            problem = f"failed: {error}"
    if record.returns:
        return record
    warnings.warn(
        f"a forward pass of {type(model).__name__} {problem}; its blocks follow the order of"
        " registration. Pass example=BATCH to follow the order of execution",
        stacklevel=4,
    )
    return None


def _made_up(model: nn.Module) -> dict[str, Tensor] | None:
    """Make up the input of a Hugging Face model of `input_ids`; None for another model."""
    config = getattr(model, "config", None)
    if config is None or getattr(model, "main_input_name", None) != "input_ids":
        return None
    device = next(model.parameters()).device
    # special tokens are at the ends
    token = getattr(_text(config), "vocab_size", 2) // 2
    ids = torch.full((1, 4), token, device=device)
    if getattr(config, "is_encoder_decoder", False):
        return {"input_ids": ids, "decoder_input_ids": ids}
    return {"input_ids": ids}


def _text(config: Any) -> Any:
    """Return the part of a configuration that has the vocabulary."""
    get = getattr(config, "get_text_config", None)
    return config if get is None else get()
