"""Check before each step that an optimizer's parameters still are those that its model uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedspzo.blocks.every_module import every_module
from fedspzo.blocks.parameters import storage

from .param_groups import Group, check_not_meta

_Form = tuple[torch.dtype, torch.Size]
_REMEDY = (
    "finish the model first (load, resize, wrap, convert and shard it), then split it and build the"
    " optimizer"
)


class HeldParameters:
    """Knows an optimizer's parameters as they were when it was built.

    Args:
        model: the module that holds them; None for bare parameters, which can be replaced unseen.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._forms: dict[str, _Form] = {}
        self._left_out: list[Tensor] = []

    def settle(self, groups: Sequence[Group]) -> None:
        """Take the parameters of these param groups as they are now.

        The model's other trainable parameters are left out of the optimizer by intention.
        """
        self._forms = {name: _form(p) for name, p in _pairs(groups)}
        self._left_out = [p for _, p in self._unheld(groups)]

    def check(self, groups: Sequence[Group]) -> None:
        """Check that each parameter is in the model, of its dtype and shape, and that some train.

        Raises:
            ValueError: one is not; the message names it and the remedy.
        """
        for name, parameter in _pairs(groups):
            check_not_meta(name, parameter)
            was, now = self._forms[name], _form(parameter)
            if now != was:
                raise ValueError(
                    f"parameter {name!r} was {_described(was)} when the optimizer was built and is"
                    f" {_described(now)} now, and settings such as eps follow from the dtype;"
                    f" {_REMEDY}"
                )
        self._check_present(groups)
        if not any(parameter.requires_grad for _, parameter in _pairs(groups)):
            raise ValueError(
                "none of the optimizer's parameters has requires_grad=True any more; unfreeze some,"
                " or build an optimizer of those that train"
            )

    def _check_present(self, groups: Sequence[Group]) -> None:
        if self._model is None:
            return
        own = (p for module in every_module(self._model) for p in module._parameters.values())
        present = {id(p): p for p in own if p is not None}
        gone = [name for name, p in _pairs(groups) if id(p) not in present]
        if gone:
            named = dict(self._model.named_parameters(remove_duplicate=False))
            for name in gone:
                if name in named:
                    check_not_meta(name, named[name])
            raise ValueError(
                f"{_said(gone)} in the model no longer: something replaced it after the optimizer"
                " was built, such as load_state_dict(assign=True), resize_token_embeddings,"
                f" tie_weights or fully_shard; {_REMEDY}"
            )
        known = {id(p) for _, p in _pairs(groups)} | set(map(id, self._left_out))
        if not any(p.requires_grad and key not in known for key, p in present.items()):
            return
        new = [name for name, p in self._unheld(groups) if id(p) not in known]
        if new:
            raise ValueError(
                f"{_said(new)} in the model with requires_grad=True, but not in the optimizer:"
                " something added or unfroze it after the optimizer was built, such as"
                f" get_peft_model; {_REMEDY}"
            )

    def _unheld(self, groups: Sequence[Group]) -> list[tuple[str, Tensor]]:
        """Return the model's trainable parameters whose memory is none of the optimizer's."""
        named = () if self._model is None else self._model.named_parameters()
        held = {id(p) for _, p in _pairs(groups)}
        others = [(name, p) for name, p in named if p.requires_grad and id(p) not in held]
        memory = {storage(p) for _, p in _pairs(groups)} if others else set()
        return [(name, p) for name, p in others if storage(p) not in memory]


def _pairs(groups: Sequence[Group]) -> list[tuple[str, Tensor]]:
    return [
        pair for group in groups for pair in zip(group["param_names"], group["params"], strict=True)
    ]


def _form(parameter: Tensor) -> _Form:
    return parameter.dtype, parameter.shape


def _described(form: _Form) -> str:
    dtype, shape = form
    return f"{dtype} of shape {tuple(shape)}"


def _said(names: Sequence[str]) -> str:
    """Return the names as the subject of a sentence."""
    first = ", ".join(map(repr, names[:3]))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"parameter {first} is" if len(names) == 1 else f"parameters {first}{more} are"
