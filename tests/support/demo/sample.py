"""The small project whose merge request gets a sandbox, and the change that Alice proposes."""

from __future__ import annotations

TITLE = "Greet whoever looks"
BRANCH = "greeting"
DESCRIPTION = "A page that greets, built by `.rave/setup` in the sandbox."

_SETUP = """\
#!/bin/sh
set -eu
echo "Building the page of $RAVE_PROJECT!$RAVE_MR"
sed "s/COMMIT/$RAVE_SHA/" page.html >index.html
echo "Built index.html, $(wc -c <index.html) bytes"
"""

_PAGE = """\
<!doctype html><title>Sandbox</title><h1>{greeting}</h1>
<p>This page comes from a virtual machine that runs commit <code>COMMIT</code>.</p>
"""


def change(greeting: str = "Hello from the sandbox!") -> dict[str, str]:
    """The files that the branch adds."""
    return {".rave/setup": _SETUP, "page.html": _PAGE.format(greeting=greeting)}
