"""The small project whose merge request gets a sandbox, and the change that Alice proposes."""

from __future__ import annotations

FILES = {"README.md": "# A sample project\n"}
"""What the project has; the page is built, so it is in no commit."""
TITLE = "Greet whoever looks"
BRANCH = "greeting"
DESCRIPTION = "A page that greets, built by `.rave/setup` in the sandbox."

LINK = "Source of the page"
"""What `.rave.yml` calls a page of the sandbox."""
MOST_MEMORY = "512 MiB"
"""So much of the 1 GiB that `.rave.yml` asks for is given."""

_SETUP = """\
#!/bin/sh
set -eu
build() { sed "s/COMMIT/$RAVE_SHA/" page.html >index.new && mv index.new index.html; }
echo "Building the page of $RAVE_PROJECT!$RAVE_MR"
build
echo "Built index.html, $(wc -c <index.html) bytes"
# It is built again whenever somebody changes it here, until the next push brings another folder.
( while [ -e page.html ]; do [ index.html -nt page.html ] || build; sleep 1; done ) </dev/null >/dev/null 2>&1 &
"""
_FILE = f"""\
# What this project needs of its sandboxes: docs/gitlab.md
memory: 1GiB
smoke_tests:
  - {{http: /page.html}}
links:
  - {{name: {LINK}, path: /page.html}}
"""
_IMAGE = "image_job: ravebot:build\n"
_BUILT = "index.html\nindex.new\n"

_PAGE = """\
<!doctype html><title>Sandbox</title><h1>{greeting}</h1>
<p>This page comes from a virtual machine that runs commit <code>COMMIT</code>.</p>
"""


GREETING = "Hello from the sandbox!"


def change(greeting: str = GREETING, *, with_image: bool = False) -> dict[str, str]:
    """The files that the branch adds; `with_image`: its pipeline builds the image."""
    return {
        ".gitignore": _BUILT,
        ".rave.yml": _FILE + (_IMAGE if with_image else ""),
        ".rave/setup": _SETUP,
        "page.html": _PAGE.format(greeting=greeting),
    }
