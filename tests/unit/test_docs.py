"""The pages say what the code does: their tables, keys of the configuration and links are compared with it."""

from __future__ import annotations

import re
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.core import TyperGroup
from typer.main import get_command

from ravebot.agents.model import ConversationId, MessageId, Turn, TurnId, TurnState
from ravebot.cli import app
from ravebot.commands.verbs import Door, help_rows
from ravebot.config.complaints import every_key
from ravebot.config.model import KeepConfig, PoolConfig, SandboxConfig, ToolKind
from ravebot.config.values import parse_duration
from ravebot.images import tools
from ravebot.matrix.agents import RECEIPTS
from ravebot.operations.init.inquiry import Asked
from ravebot.operations.init.questions import QUESTIONS
from ravebot.operations.readiness import Readiness
from ravebot.operations.reports import AgentUsageLine, UsageLine
from ravebot.operations.service.layout import Installation, things
from ravebot.operations.tokens.cli import SCOPES
from ravebot.sandboxes.decide import MACHINES, SANDBOXES, Then
from ravebot.sandboxes.model import EndReason, EventKind, Stage
from ravebot.sandboxes.telling import TELLINGS, Telling
from ravebot.store.api_tokens import Scope
from ravebot.tools.table import TOOLS
from ravebot.web.checks import State
from ravebot.web.metrics import Metrics
from tests.support.pages import (
    DOCS,
    EXAMPLE,
    PAGES,
    README,
    ROOT,
    anchors,
    code,
    codes,
    everything,
    example_keys,
    grid,
    links,
    rows,
    table,
)

# Where the truth is: what the code says, in the form of the tables.


def room_commands() -> list[tuple[str, str]]:
    return list(help_rows(Door.ROOM, "!rave"))


def comment_commands() -> list[tuple[str, str]]:
    return list(help_rows(Door.COMMENT, "/sandbox"))


def shell_commands() -> list[tuple[str, str]]:
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    shown = {name: command for name, command in group.commands.items() if not command.hidden}
    return [(f"ravebot {name}", command.help or "") for name, command in shown.items()]


def agent_commands() -> list[tuple[str, str]]:
    """The commands below `ravebot agent` and `ravebot approvals`."""
    shell = get_command(app)
    assert isinstance(shell, TyperGroup)

    def below(group: TyperGroup, name: str) -> list[tuple[str, str]]:
        found = []
        for word, command in group.commands.items():
            called = f"{name} {word}"
            found += below(command, called) if isinstance(command, TyperGroup) else [(called, command.help or "")]
        return found

    groups = {name: shell.commands[name] for name in ("agent", "approvals")}
    return [row for name, group in groups.items() if isinstance(group, TyperGroup) for row in below(group, name)]


def event_kinds() -> set[str]:
    return {kind.value for kind in EventKind}


def machine_steps() -> dict[tuple[str, str], str]:
    return {(wanted.value, observed.value): step.value for (wanted, observed), step in MACHINES.items()}


def sandbox_steps() -> dict[tuple[str, str], str]:
    steps = {(state.value, happened.value): then for (state, happened), then in SANDBOXES.items()}
    return {place: then.value for place, then in steps.items() if then is not Then.NOTHING}


def told(telling: Telling | None) -> str:
    if telling is None:
        return "log"
    places = {
        "thread": any(telling.thread({"reason": reason}) for reason in ("failed", "expired")),
        "room": telling.say,
        "operations room": telling.operators,
        "warning": telling.warn,
    }
    return ", ".join(["history", *(place for place, so in places.items() if so)])


# Commands, events, checks and metrics.


def commands_in(head: str) -> list[tuple[str, str]]:
    return [(code(command), purpose) for command, purpose in rows("operate.md", head)]


def test_the_table_of_matrix_commands_is_the_code_s() -> None:
    assert commands_in("say") == room_commands()


def test_the_table_of_comments_is_the_code_s() -> None:
    assert commands_in("comment") == comment_commands()


def test_the_table_of_shell_commands_is_the_code_s() -> None:
    assert commands_in("run") == shell_commands()


def test_the_table_of_the_shell_s_commands_for_agents_is_the_code_s() -> None:
    assert commands_in("of `ravebot`") == agent_commands()
    assert len(agent_commands()) == 11


def test_the_table_of_what_is_installed_is_the_code_s() -> None:
    shown = [(name.replace("`", ""), what) for name, what in rows("install.md", "installed")]
    assert shown == [(thing.name, thing.what) for thing in things(Installation())]


def test_the_table_of_events_has_every_kind_and_says_where_people_are_told() -> None:
    shown = {code(kind): where for kind, where, _ in rows("operate.md", "event")}
    assert shown == {kind.value: told(TELLINGS.get(kind)) for kind in EventKind}


def test_the_tables_of_readiness_are_the_code_s() -> None:
    checks = Readiness.__new__(Readiness).checks()  # its names need none of its parts
    assert [code(name) for name, _ in rows("operate.md", "check")] == list(checks)
    assert [code(state) for state, _ in rows("operate.md", "state")] == [state.value for state in State]


def test_the_table_of_metrics_is_what_metrics_shows() -> None:
    metrics = Metrics()
    families = text_string_to_metric_families(metrics.exposition().decode())
    exposed = {f"{one.name}_total" if one.type == "counter" else one.name for one in families}
    table = rows("operate.md", "metric")
    documented = {code(name): tuple(labels.split(", ")) if labels else () for name, labels, _ in table}
    assert set(documented) == exposed
    assert documented == metrics.labels | {name: () for name in exposed if name.startswith("process_")}


def test_the_table_of_figures_of_usage_is_what_programs_get() -> None:
    documented = {name for names, _ in rows("operate.md", "figure") for name in codes(names)}
    assert documented == {one.name for kind in (UsageLine, AgentUsageLine) for one in fields(kind)} - {"group"}


def test_the_table_of_what_is_forgotten_has_every_key_and_its_default() -> None:
    documented = {code(key): parse_duration(usual.split()[0]) for key, usual, _ in rows("operate.md", "key")}
    assert documented == {name: field.default for name, field in KeepConfig.model_fields.items()}


def test_the_table_of_tools_is_the_code_s() -> None:
    shown = [(code(name), scope, code(path), does) for name, scope, path, does in rows("api.md", "tool")]
    assert shown == [(tool.name, str(tool.scope or ""), f"{tool.method} {tool.path}", tool.does) for tool in TOOLS]
    assert [code(scope) for scope, _ in rows("api.md", "scope")] == [scope.value for scope in Scope] == list(SCOPES)


# Decisions.


@pytest.mark.parametrize("of", ["machine", "sandbox"])
def test_every_step_of_a_table_of_decisions_is_explained(of: str) -> None:
    other = "observed" if of == "machine" else "event"
    steps = [step for step, _ in rows("concepts.md", f"step of a {of}")]
    assert sorted(steps) == sorted(set(grid("concepts.md", f"{of} \\ {other}").values()))


def test_the_table_of_machines_is_the_code_s() -> None:
    assert grid("concepts.md", "machine \\ observed") == machine_steps()


def test_the_table_of_sandboxes_is_the_code_s() -> None:
    assert grid("concepts.md", "sandbox \\ event") == sandbox_steps()


def test_stages_and_reasons_to_end_are_the_code_s() -> None:
    assert [stage for stage, _, _ in rows("concepts.md", "stage")] == [stage.value for stage in Stage]
    reasons = [reason for cell, _ in rows("concepts.md", "reason") for reason in codes(cell)]
    assert reasons == [reason.value for reason in EndReason]


def test_the_table_of_turns_has_every_state_and_its_receipt() -> None:
    receipts = {
        state: Turn(TurnId(1), MessageId(1), ConversationId(1), state, datetime.now(UTC)).receipt for state in TurnState
    }
    shown = {state: mark for state, _, mark in rows("concepts.md", "turn")}
    assert shown == {state.value: RECEIPTS[receipt] if receipt else "" for state, receipt in receipts.items()}


def test_the_table_of_folders_has_every_folder_that_is_there() -> None:
    shown = {code(folder).rstrip("/") for folder, *_ in rows("extend.md", "part")}
    there = {f"ravebot/{path.parent.name}" for path in (ROOT / "ravebot").glob("*/__init__.py")}
    assert there - shown == set()
    assert [folder for folder in shown if not (ROOT / folder).is_dir()] == []


# Configuration.


def test_the_example_shows_every_key_there_is() -> None:
    """Those that are commented out count, and none is shown that is not there."""
    shown = {path for path in example_keys() if not re.match(r"@|[A-Z]", str(path[-1]))}  # people and variables
    assert shown == set(every_key())


def test_every_key_of_the_example_is_explained() -> None:
    """By a comment behind it, or above it in its paragraph."""
    unexplained = []
    for paragraph in EXAMPLE.read_text().split("\n\n"):
        explained = False
        for line in paragraph.splitlines():
            text = line.strip().removeprefix("# ")
            if not re.match(r"(?:- )?{?[a-z_]+:(?: |$)", text):
                explained = explained or line.strip().startswith("#")
            elif not (explained or "  # " in line or text.endswith(":")):
                unexplained.append(line)
    assert unexplained == []


def test_keys_that_pages_name_are_there() -> None:
    known = {".".join(map(str, path)) for path in every_key()}
    sections = {str(path[0]) for path in every_key() if len(path) > 1}
    named = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", everything())) - event_kinds()
    named = {name for name in named if name.partition(".")[0] in sections}
    assert named
    assert named - known == set()


# Installation.


def commands_in_full(text: str) -> list[list[str]]:
    """What a page tells to type that begins with ravebot: inline and in indented blocks, continued lines included."""
    text = text.replace("\\\n", " ")
    inline = re.findall(r"`(?:\S*/)?ravebot ([^`]+)`", text)
    indented = re.findall(r"^ +(?:\S*/)?ravebot (.*?)(?:  +#.*)?$", text, re.MULTILINE)
    return [line.split() for line in (*inline, *indented)]


@pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
def test_every_command_and_option_that_installs_is_there(page: str) -> None:
    told = commands_in_full((ROOT / page).read_text())
    assert ["init", "--service"] in told
    for words in told:
        command = get_command(app)
        left = list(words)
        while isinstance(command, TyperGroup) and left and not left[0].startswith("-"):
            assert left[0] in command.commands, words
            command = command.commands[left.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert [word for word in left if word.startswith("-") and word not in known] == [], words


def test_the_page_on_installing_has_the_questions_that_are_asked() -> None:
    asked = [question.prompt for question in QUESTIONS if question.asked in (Asked.ALWAYS, Asked.OFFERED)]
    assert [prompt for prompt, _ in rows("install.md", "it asks for")] == asked


def test_the_table_of_times_adds_up_and_counts_the_commands_that_are_shown() -> None:
    steps = rows("install.md", "step")
    *each, (_, commands, _, seconds) = steps
    assert sum(int(row[3]) for row in each) == int(seconds)
    assert sum(int(row[1].partition(",")[0]) for row in each) == int(commands)
    start = (DOCS / "install.md").read_text().partition("## Quick start")[2].partition("**Where the time goes**")[0]
    shown = re.findall(r"^    \S", start.replace("\\\n", " "), re.MULTILINE)
    assert len(shown) == int(commands)


def test_the_sizes_are_those_of_the_defaults() -> None:
    sandbox, gib = SandboxConfig(host="sandboxes.example.org"), 1024**3
    many = [int(re.match(r"\d+", cell)[0]) for cell in table("install.md", "of the host")[0][2:]]  # type: ignore[index]
    told = {name: cells for name, _, *cells in rows("install.md", "of the host")}
    assert many[0] == PoolConfig().max_running
    assert told["memory"] == [f"{number * sandbox.memory // gib + 2} GiB" for number in many]
    assert told["disk"] == [f"{number * sandbox.disk // gib + 10} GiB" for number in many]


# Packages.

# dpkg, tar and util-linux are essential, and who reads this has apt: it is what they install the rest with.
EVERY_DEBIAN_HAS = {"apt", "dpkg", "tar", "util-linux"}
OF_A_BUILD = {*tools.PROGRAMS.values(), *tools.FILES.values()} - EVERY_DEBIAN_HAS


def installed(page: Path) -> list[set[str]]:
    """The packages of each command in a page that installs some."""
    text = page.read_text().replace("\\\n", " ")
    commands = re.findall(r"^ +apt-get install( .+)$", text, re.MULTILINE)
    return [set(re.findall(r" ([a-z0-9][a-z0-9+.-]+)", command)) for command in commands]


@pytest.mark.parametrize("page", ["README.md", "docs/install.md", "docs/image.md"])
def test_pages_install_every_package_that_a_build_needs(page: str) -> None:
    assert OF_A_BUILD - set().union(*installed(ROOT / page)) == set()


def test_the_page_about_images_installs_no_package_that_a_build_does_not_need() -> None:
    assert installed(DOCS / "image.md") == [OF_A_BUILD]


def test_dev_installs_every_package_that_a_build_needs() -> None:
    packages = re.search(r'^packages="([^"]+)"', (ROOT / "dev").read_text(), re.MULTILINE)
    assert packages
    assert OF_A_BUILD - set(packages[1].split()) == set()


# Links and files.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_line_has_at_most_120_characters_unless_it_is_a_table_s_or_an_address(page: Path) -> None:
    lines = [re.sub(r"https?://\S+", "", line) for line in page.read_text().splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 120] == []


def test_readme_is_at_most_150_lines_long() -> None:
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert links(page)
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.is_file(), target
        assert not anchor or anchor in anchors(file), target


def test_no_file_has_a_mark_of_a_merge_that_was_not_finished() -> None:
    mark = re.compile(rb"^(?:<{7}|>{7}) ", re.MULTILINE)
    tops = [ROOT / name for name in ("docs", "ravebot", "tests", "nixos", "benchmarks")]
    nested = [path for top in tops for path in top.rglob("*") if "__pycache__" not in path.parts]
    files = [path for path in (*ROOT.iterdir(), *nested) if path.is_file() and path.stat().st_size < 1_000_000]
    assert len(files) > 500
    assert [str(path.relative_to(ROOT)) for path in files if mark.search(path.read_bytes())] == []


def test_readme_links_to_every_page() -> None:
    linked = {(ROOT / target).resolve() for target in links(README)}
    assert {*DOCS.glob("*.md"), EXAMPLE} - linked == set()


def test_the_receipts_on_a_message_to_an_agent_are_those_that_are_given() -> None:
    shown = {bare(line[0]) for line in rows("agents.md", "receipt")}
    assert shown == {bare(key) for key in RECEIPTS.values()}


def bare(emoji: str) -> str:
    """Without the sign that asks for colour."""
    return emoji.replace("\ufe0f", "")


def test_the_kinds_of_tools_that_a_person_may_have_to_allow_are_the_configuration_s() -> None:
    page = (DOCS / "agents.md").read_text()
    sentence = page[page.index("The kinds are those of") :].partition(".")[0]
    assert set(re.findall(r"`([a-z_]+)`", sentence)) == set(get_args(ToolKind))


def test_every_question_about_the_code_is_answered_with_at_most_two_files() -> None:
    answers = {question: codes(files) for question, _, files in rows("extend.md", "question")}
    assert len(answers) == 29
    assert {question: files for question, files in answers.items() if not 1 <= len(files) <= 2} == {}
