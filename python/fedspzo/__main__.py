"""`python -m fedspzo` is the command `fedspzo`."""

from __future__ import annotations

import sys

from fedspzo.app.cli import main

sys.exit(main())
