"""`./dev demo`: the whole bot at work on throwaway parts, told as it happens; every line it prints was seen.

Start reading in `story`; `python -m tests.support.demo` runs it (as root).
"""
