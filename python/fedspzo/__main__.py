"""The command `fedspzo`, also as `python -m fedspzo`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line, and return the exit code. Ctrl-C is one line from the start on."""
    try:
        from fedspzo.app.cli import main as run

        return run()
    except KeyboardInterrupt:  # in the import
        print("fedspzo: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
