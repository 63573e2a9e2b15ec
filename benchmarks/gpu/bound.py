"""How fast a training step can be, over its forward passes alone: counted in bytes of weights.

`python -m gpu.bound` prints the bounds of the estimators for OPT-1.3B, on assumed cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

TERA = 1e12


class Passes(NamedTuple):
    """How often a step has to pass over a block's weights.

    Attributes:
        weights: how many the block has.
        passes: at least so many; each reads and writes every weight once.
    """

    weights: int
    passes: int


def block_passes(weights: int, directions: int, sides: int) -> Passes:
    """Count the passes over a block that a step cannot do without.

    Every point where the block is moved is one pass: in place from the point before it, or
    layerwise from the weights to the scratch buffer. One more restores and updates together.

    Args:
        weights: of the block.
        directions: the block's in a step.
        sides: points along each, 1 or 2.
    """
    return Passes(weights, sides * directions + 1 if directions else 0)


def forward_share_bound(
    forwards: float,
    forward_ms: float,
    blocks: Sequence[Passes],
    bytes_a_weight: int,
    copy_bytes_per_s: float,
) -> float:
    r"""Bound the share of a step's time that its forward passes take.

    .. math:: \frac{F t}{F t + \sum_b n_b N_b \cdot 2 s / B}

    for F forward passes of time t, n_b passes over the N_b weights of block b, s bytes a weight
    and B bytes a second, read and written, of a copy. No passes run beside the forward passes.

    Args:
        forwards: F, the cost of the step's evaluations in full forward passes.
        forward_ms: t, in milliseconds.
        blocks: each block's weights and passes.
        bytes_a_weight: s.
        copy_bytes_per_s: B, measured on the device.

    Returns:
        The bound, in (0, 1].
    """
    computing = forwards * forward_ms / 1e3
    moving = sum(b.weights * b.passes for b in blocks) * 2 * bytes_a_weight / copy_bytes_per_s
    return computing / (computing + moving)


def estimators(c2: float) -> dict[str, tuple[float, tuple[int, int]]]:
    """The estimators of two blocks: the forward passes of a step, and each block's moved points.

    Args:
        c2: C_2, what an evaluation of block 2 alone costs, as a share of a forward pass.
    """
    many, even = round(3 * c2**-0.5), max(2, 2 * round((1 - c2) / c2 / 2))
    reused = 2 * (1 - c2) + 2 * even * c2
    return {
        f"`anchored`, two-sided, P = (3, {many}): the default": (
            1 + 2 * (3 + many * c2),
            (6, 2 * many),
        ),
        f"`anchored`, one-sided, P = (3, {many})": (1 + 3 + many * c2, (3, many)),
        f"`balanced`, two-sided, P = (1, {even})": (reused, (2, 2 * even)),
        f"`balanced`, one-sided, P = (1, {even})": (2 + even * c2, (2, even)),
        f"`coupled`, P = (1, {even})": (reused, (2, 2 * even)),
        "`mezo`, two-sided, P = 1": (2, (2, 2)),
        "`mezo`, one-sided, P = 4": (5, (4, 4)),
    }


def main() -> None:
    # OPT-1.3B, 8 x 512 tokens, cut before the last 3 of 24 layers; the head is tied to block 1
    hidden, layers, last, tokens, length = 2048, 24, 3, 8 * 512, 512
    layer = 12 * hidden**2 + 13 * hidden
    blocks = (50272 + 2050) * hidden + (layers - last) * layer, last * layer + 2 * hidden
    layer_flops = 2 * 12 * hidden**2 * tokens + 4 * tokens * length * hidden
    head_flops = 2 * 50272 * hidden * tokens
    flops = layers * layer_flops + head_flops
    c2 = (last * layer_flops + head_flops) / flops
    forward_ms = 1e3 * flops / (600 * TERA)
    print(f"forward pass: {forward_ms:.1f} ms at 600 TFLOP/s; C_2 = {c2:.3f}\n")
    print("| estimator | forward passes | passes, block 1 | block 2 | 3.0 TB/s | 4.3 TB/s |")
    print("|" + " --- |" * 6)
    for name, (forwards, moved) in estimators(c2).items():
        passes = [Passes(n, points + 1) for n, points in zip(blocks, moved, strict=True)]
        cells = [name, f"{forwards:.2f}", *(str(p.passes) for p in passes)]
        for bandwidth in (3.0 * TERA, 4.3 * TERA):
            cells.append(f"{forward_share_bound(forwards, forward_ms, passes, 2, bandwidth):.3f}")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
