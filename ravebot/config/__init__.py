"""What an operator configures: its shape and limits, and reading it from the file with every error at once.

Knows nothing of the rest of ravebot but `errors` and what is pure in `sandboxes`.
"""
