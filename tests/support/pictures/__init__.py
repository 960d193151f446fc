"""`./dev pictures`: screenshots of a sandbox's life, from a real run, as people see it in Matrix and in GitLab.

Start reading in `story`; `python -m tests.support.pictures` runs it (as root). It needs a desktop client, a browser and
a virtual screen: `needed` says which Debian packages these are.
"""
