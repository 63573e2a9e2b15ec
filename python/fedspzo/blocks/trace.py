"""Trace one forward pass: the order in which a model runs its layers and uses its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .evaluation_mode import eager, evaluating
from .shadow import on_return
from .shards import gathering_modules, reshard
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
        problem: what there is to say where it did not come to a cut.
    """

    def __init__(self, model: nn.Module, modules: Iterable[nn.Module]) -> None:
        super().__init__(dict(model.named_parameters(remove_duplicate=False)), model=model)
        self.first_use: dict[str, int] = {}
        self.returns: list[nn.Module] = []
        self.complete, self.problem = False, ""
        self._modules = list(modules)

    def __enter__(self) -> Trace:
        for module in self._modules:
            self._watching.enter_context(on_return(module, self.returns.append))
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


def trace(
    model: nn.Module, modules: Iterable[nn.Module], example: Mapping[str, Any] | None
) -> Trace | None:
    """Run the model once without gradients, and return what it did.

    Args:
        model: the model.
        modules: the modules whose returns are recorded.
        example: keyword arguments of the forward pass. None: a few tokens, an image or a sound are
            made up for a Hugging Face model.

    Returns:
        The trace, which may have failed; None if there is nothing to run the model on.
    """
    modules = list(modules)
    best: Trace | None = None
    for inputs in _made_up(model) if example is None else [example]:
        record = _run(model, inputs, Trace(model, modules))
        if best is None or len(record.returns) > len(best.returns):
            best = record
        if record.complete:
            return record
    return best


def _run(model: nn.Module, inputs: Mapping[str, Any], record: Trace) -> Trace:
    with evaluating(model), torch.no_grad(), eager():
        try:
            with record:
                model(**inputs)
            record.complete, record.problem = True, "never came to the cut"
        except Exception as error:
            # foreign model code may fail in any way on made-up input
            record.problem = f"failed: {error}"
        finally:
            reshard(gathering_modules(model))
    return record


def _made_up(model: nn.Module) -> list[dict[str, Tensor]]:
    """Make up inputs of a Hugging Face model, of which the first that it takes will do."""
    config = getattr(model, "config", None)
    kind = getattr(model, "main_input_name", None)
    if config is None or kind is None:
        return []
    parameter = next(model.parameters())
    get = getattr(config, "get_text_config", None)
    # special tokens are at the ends
    token = getattr(config if get is None else get(), "vocab_size", None) or 2
    ids = torch.full((1, 4), token // 2, device=parameter.device)
    decoded = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
    if kind == "input_ids":
        return [{kind: ids, **decoded}]
    shapes = [shape for shape in _shapes(config).get(kind, []) if all(shape)]
    zeros = partial(torch.zeros, dtype=parameter.dtype, device=parameter.device)
    return [{kind: zeros(1, *shape), **decoded} for shape in shapes]


def _shapes(config: Any) -> dict[str, list[Sequence[int]]]:
    """Return the shapes that an example of images or sound may have."""
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", config)
    sound = getattr(config, "audio_config", None) or getattr(config, "encoder_config", config)
    size = getattr(vision, "image_size", None) or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = getattr(vision, "num_channels", None) or 3
    names = ("num_mel_bins", "input_feat_per_channel", "feature_size")
    bins: int = next((b for name in names if (b := getattr(sound, name, None))), 0)
    frames = 2 * getattr(sound, "max_source_positions", 50)
    return {
        "pixel_values": [(channels, height, width)],
        "input_features": [(bins, frames), (100, bins)],
        "input_values": [(4000,)],
    }
