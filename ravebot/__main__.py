"""`python -m ravebot` and the `ravebot` command."""

from ravebot.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
