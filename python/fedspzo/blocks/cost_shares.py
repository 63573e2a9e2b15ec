"""Cost shares: the cost of an evaluation that replays the blocks before a cut, over a full one's.

The cost is counted in floating point operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain

from torch import Tensor, nn

from .activation_replay import ActivationReplay
from .dependence import Dependence
from .evaluation_mode import eager
from .repeats import changing, repeats
from .touched import Touched


@contextmanager
def _explained(block: int) -> Iterator[None]:
    """Add a note to what is raised inside the `with` block, as replay may be the cause."""
    try:
        yield
    except Exception as error:
        error.add_note(
            f"The model ran in full, and failed when it was replayed before block {block}. If what"
            " comes between its layers, or after them, needs more than the last one's output, cut"
            " elsewhere, or pass Blocks.single(model)"
        )
        raise


def measure(
    replay: ActivationReplay,
    blocks: Sequence[Mapping[str, Tensor]],
    evaluate: Callable[[], Tensor],
    first: Mapping[str, Tensor] | None = None,
    model: nn.Module | None = None,
) -> tuple[float, ...]:
    """Check that a model works as it was split, and measure the cost share of each cut.

    The model is evaluated once in full and once replayed from every cut, at the weights as they
    are. If it has something frozen that is replayed, it is evaluated once more with that alone.

    Args:
        replay: an entered replay with at least one layer.
        blocks: for each block but the first, its parameters by name.
        evaluate: returns the loss, a scalar, always of the same data.
        first: block 1's parameters by name. They are needed if something is frozen.
        model: the model, which is needed where it is sharded.

    Returns:
        For each block but the first, its cost share in (0, 1]. Block 1's comes before them if it
        is below 1, as what is frozen is replayed.

    Raises:
        RuntimeError: a block's parameters are used before its cut, or the losses differ.
    """
    from .flop_count import flop_counter

    starting = list(zip(range(2, 2 + len(blocks)), blocks, replay.starts, strict=True))
    if replay.frozen:
        starting.append((1, first or {}, replay.frozen))
    replay.capture()
    with ExitStack() as stack:
        stack.enter_context(eager())
        early = {
            number: stack.enter_context(Touched(block, replay.layers[start - 1], model))
            for number, block, start in starting
        }
        trained = chain(*(block.values() for block in (first or {}, *blocks)))
        replay.depends = stack.enter_context(Dependence(trained)).reaches
        stack.callback(setattr, replay, "depends", None)
        full = stack.enter_context(flop_counter())
        loss = replay.evaluated(evaluate)
    for number, touched in early.items():
        if touched.names:
            raise RuntimeError(
                f"block {number}'s parameters {sorted(touched.names)} are used before the cut; pass"
                " example=BATCH to blocks.split, so that it can see where they are used"
            )
    total = full.get_total_flops()
    devices = {tensor.device for block in (first or {}, *blocks) for tensor in block.values()}
    shares = []
    for number in range(0 if replay.keeps_frozen else 1, len(replay.starts) + 1):
        if number:
            replay.replay(number)
        else:
            replay.capture()
        with eager(), flop_counter() as part, _explained(number + 1):
            again = replay.evaluated(evaluate)
        if loss.isfinite() and not repeats(loss, again, devices):
            replay.run()
            in_full = replay.evaluated(evaluate)
            if not repeats(loss, in_full, devices):
                raise changing(loss, in_full)
            raise RuntimeError(
                f"the loss is {loss.item()} in full and {again.item()} replayed before block"
                f" {number + 1}: block {number + 1} uses more than the last output of the layers"
                " before it, as a loss on hidden states or on an auxiliary output does. Cut"
                " elsewhere, or pass Blocks.single(model)"
            )
        shares.append(max(part.get_total_flops(), 1) / total if total else 1.0)
    return tuple(shares[len(replay.starts) < len(shares) and shares[0] >= 1 :])
