"""`python -m fedspzo` is the command `fedspzo`."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
