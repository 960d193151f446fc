"""`python -m ravebot` and the `ravebot` command."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command; Ctrl-C while its parts are loaded ends it as later, with 130."""
    try:
        from ravebot.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
