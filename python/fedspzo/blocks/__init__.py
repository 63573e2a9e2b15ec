"""A network cut into consecutive blocks, and the replay of the activations before a cut.

Imports nothing of fedspzo.
"""

from __future__ import annotations

from .cut import Blocks, split

__all__ = ["Blocks", "split"]
