"""A network that is cut into consecutive blocks, and the replay of the activations before a cut.

`cut` splits a model at layers of its `layer_stack`, after a `trace` of what the model runs and
`uses` when. `activation_replay` captures and replays the layers before a cut, and `side_modules`
what stands beside them. `cost_shares` measures the computation that this saves. `layer_input` and
`repeats` tell whether inputs and losses are the same. `shards` knows of parameters of which each
process holds a part. Imports nothing of fedspzo.
"""

from __future__ import annotations

from .cut import Blocks, split
from .output_rows import merge_rows, untie_rows

__all__ = ["Blocks", "merge_rows", "split", "untie_rows"]
