"""The constants of `lr="auto"`.

They were chosen on the problems of `benchmarks/compute_to_target.py`. docs/learning-rates.md says
what shows that each is needed: a row of benchmarks/results/ablate_auto.md, a test, or a source.
"""

from __future__ import annotations

LEARNING_TURNS = 8
"""Number of a block's first turns that set its rate. Each sets it by the mean over the turns so
far. The loss monitor's first steps are as many, and its moving average is over as many."""
LEAD_STEPS = 16
"""Number of steps after which all blocks have joined the last one."""
LONGEST_INTERVAL = 8
"""Largest number of steps from one turn of a block to its next."""
TURN_DECAY = 0.75
"""Decay of the moving averages over a block's turns, per turn."""

START = 1e-4
"""Rate of a block that has had no turn, or that nothing bounds."""
SIZE = 0.045
"""Largest norm of a step over that of the block's weights."""
SIZE_LAST = 0.25
"""The same for the last of several blocks. It is larger, as the weights of a new head are small at
first."""
CURVATURE = 1 / 32
"""Share of the best rate for a single step that the curvature allows."""
NEWTON = 0.25
"""Share of a damped Newton step that is taken, as much of a batch's gradient may be noise. With a
half, learning is faster where batches tell much, and worse on the reviews and with batches of 2."""
STEADY_TURNS = 20
"""Number of a block's turns after which its rate falls."""
FALL_POWER = 0.75
"""Power of STEADY_TURNS / turns by which a rate falls. The sum of such rates has no bound, and the
sum of their squares, by which noise adds up, has one (Robbins and Monro, 1951)."""

SLACK = 0.1
"""Rise of the loss' moving average above its best value that is allowed, as a share of the sum of
that value and the mean of the first losses."""
EARLY_SLACK = 0.35
"""`SLACK` in the first `LEARNING_TURNS` steps and in as many after a restart. It is larger, as few
batches tell little."""
DEVIATIONS = 7.0
"""Rise that is allowed at least where losses vary by chance, in standard deviations of the moving
average. The least of many noisy values is far below their mean."""
LOST_STEPS = 4
"""Number of steps in a row without finite losses after which the last steps are taken back."""
MEMORY = 64
"""Largest number of steps that can be taken back. The losses' variance is over as many."""
HALVE = 0.5
"""Factor of all rates when training diverges."""
