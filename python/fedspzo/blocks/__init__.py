"""A network cut into consecutive blocks, and the replay of the activations before a cut.

Imports nothing of fedspzo.
"""

from __future__ import annotations

from .cut import Blocks, split
from .output_rows import merge_rows, untie_rows

__all__ = ["Blocks", "merge_rows", "split", "untie_rows"]
