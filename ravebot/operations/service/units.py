"""The systemd units: files of this package, made to fit an installation."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

PROGRAM = Path("/usr/local/bin/ravebot")
CONFIG = Path("/etc/ravebot/config.yaml")
STATE_DIR = Path("/var/lib/ravebot")
USER = "ravebot"
BOT = "ravebot.service"
"""What the files say; another installation's values are put in their place."""


def names() -> tuple[str, ...]:
    """Every unit of this package."""
    files = resources.files(__package__).joinpath("units").iterdir()
    return tuple(sorted(file.name for file in files if file.name.endswith((".service", ".timer"))))


def render(
    name: str, *, program: Path, config: Path, state_dir: Path, user: str, images_folder: Path | None = None
) -> str:
    """A unit's text for that installation. `images_folder`: of images from pipelines, if it is configured."""
    text = resources.files(__package__).joinpath("units", name).read_text("utf-8")
    lines = [_line(line, program, config, state_dir, user) for line in text.splitlines()]
    if name == BOT and images_folder is not None and not images_folder.is_relative_to(state_dir):
        # `-`: without the folder ravebot starts all the same, and says what is wrong
        lines.insert(lines.index("[Service]") + 1, f"ReadWritePaths={_quoted(f'-{images_folder}')}")
    return "\n".join(lines) + "\n"


def _line(line: str, program: Path, config: Path, state_dir: Path, user: str) -> str:
    key, equals, value = line.partition("=")
    if not equals or line.startswith("#"):
        return line
    if key.startswith("Exec"):
        words = value.split(" ")
        fitting = {str(PROGRAM): str(program), str(CONFIG): str(config)}
        return f"{key}={' '.join(_quoted(fitting[w]) if w in fitting else _moved(w, state_dir) for w in words)}"
    if key in ("User", "Group") and value == USER:
        return f"{key}={user}"
    if key == "StateDirectory" and value == STATE_DIR.name:
        if state_dir.is_relative_to(STATE_DIR.parent):
            return f"{key}={_quoted(str(state_dir.relative_to(STATE_DIR.parent)))}"
        return f"ReadWritePaths={_quoted(str(state_dir))}"
    if key == "StateDirectoryMode" and not state_dir.is_relative_to(STATE_DIR.parent):
        return f"# {line}: the folder lies elsewhere"
    if key in ("ReadWritePaths", "ConditionPathExists"):
        return f"{key}={' '.join(_moved(word, state_dir) for word in value.split(' '))}"
    return line


def _moved(word: str, state_dir: Path) -> str:
    """A path below the state folder, which may follow a `-`."""
    mark, path = ("-", Path(word[1:])) if word.startswith("-") else ("", Path(word))
    return _quoted(f"{mark}{state_dir / path.relative_to(STATE_DIR)}") if path.is_relative_to(STATE_DIR) else word


def _quoted(path: str) -> str:
    """As systemd.syntax(7) and systemd.unit(5) want it: `%` doubled, other unusual characters within quotes."""
    path = path.replace("%", "%%").replace("$", "$$")
    if all(char.isalnum() or char in "/._-%$@+:," for char in path):
        return path
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
