"""The configuration: its keys and their limits, and reading the file with all errors reported at once.

May import `errors` and the pure modules of `sandboxes`; nothing else of ravebot.
"""
