"""Mistakes on the command line are told before anything is done."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ravebot.cli import app, demo_script, until_told_to_stop
from ravebot.errors import StoreError, Unavailable
from ravebot.terminal import clean, output

COMMANDS = (
    *(
        "init",
        "run",
        "check-config",
        "doctor",
        "list",
        "stop",
        "cleanup",
        "audit",
        "usage",
        "logs",
        "backup",
        "restore",
    ),
    *("uninstall", "demo", "image", "gitlab", "agent", "approvals", "project"),
)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "NO_COLOR": "1"})
    return result.exit_code, result.output


@pytest.mark.parametrize("command", ["usage", "audit"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--since", "yesterday"), "Invalid value for --since: write how long ago, like 7d, or a date like 2026-01-31"),
        (("--since", "7d", "--until", "2026-13-01"), "Invalid value for --until: write how long ago"),
        (("--since", "1d", "--until", "2d"), "the time ends before it begins"),
    ],
)
def test_a_time_that_is_wrong_is_told_with_its_option(command: str, words: tuple[str, ...], told: str) -> None:
    code, text = invoke(command, *words)
    assert code == 2
    assert told in " ".join(text.replace("│", " ").split())


def test_help_names_every_command_and_what_the_exit_codes_mean() -> None:
    code, text = invoke("--help")
    assert code == 0
    assert all(command in text for command in COMMANDS)
    assert "3 when no ravebot is running" in text


def test_json_shows_a_terminal_nothing_that_moves_its_cursor_and_means_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = {"said": "Grüße \x9b31m \u202e \x7f \x1b[2J \u2028 \U000e0041 \n"}
    output.json(value)
    text = capsys.readouterr().out
    assert "Grüße" in text
    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == value


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    code, text = invoke(command, "--help")
    assert code == 0
    assert "Usage:" in text


def test_the_version_is_printed() -> None:
    assert invoke("--version") == (0, "ravebot 0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cleanup",), "say what to clean up"),
        (("cleanup", "--all"), "add --force"),
        (("cleanup", "--all", "--force", "--older-than", "4h"), "one of --older-than and --all"),
        (("cleanup", "--instance-id", "0123456789"), "goes with --all"),
        (("cleanup", "--instance-id", "0123456789", "--all", "--adopt"), "goes with --all"),
        (("cleanup", "--instance-id", "x y", "--all"), "that is no instance id"),
        (("cleanup", "--instance-id", "../x", "--all"), "that is no instance id"),
        (("cleanup", "--older-than", "4 hours"), "write a duration like"),
        (("usage", "--since", "yesterday"), "write how long ago"),
        (("audit", "--limit", "0"), "--limit"),
        (("agent", "send", "x" * 51, "group/app!42", "hello"), "write one like coder"),
        (("agent", "send", "coder", "a\nb!42", "hello"), "write one like group/app!42"),
        (("agent", "send", "coder", "group/app!42", "x" * 16_001), "an agent takes 16,000"),
        (("agent", "check", "coder", "x" * 501), "write one like group/app!42"),
        (("agent", "dead", "drop", "0"), "TURN"),
        (("agent", "dead", "resend", "9" * 30), "TURN"),
        (("approvals", "decide", "12"), "say either --yes or --no"),
        (("approvals", "decide", "12", "--yes", "--no"), "say either --yes or --no"),
        (("stop",), "REF"),
        (("stop", "group/app!" + "4" * 500), "write one like group/app!42"),
        (("stop", "group/\udcff!42"), "write one like group/app!42"),
        (("audit", "group/app!" + "4" * 500), "write one like group/app!42"),
        (("audit", "group/\udcff!42"), "write one like group/app!42"),
        (("nonsense",), "No such command"),
        (("run", "--log-level", "loud"), "loud"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_and_ends_with_2(arguments: tuple[str, ...], says: str) -> None:
    code, text = invoke(*arguments)
    assert code == 2
    assert says in text


def test_text_from_people_is_shown_in_one_line_without_control_characters() -> None:
    assert clean("a\nb\tc\x1b[2Jd\u202ee") == "a\\nb\\tc\\x1b[2Jd\\u202ee"
    assert clean("Ünïcode 🎉 stays") == "Ünïcode 🎉 stays"


def test_the_demo_without_a_checkout_says_where_it_is(tmp_path: Path) -> None:
    assert demo_script(tmp_path) is None
    script = tmp_path / "dev"
    script.write_text("#!/bin/sh\n")
    assert demo_script(tmp_path) is None
    script.chmod(0o755)
    assert demo_script(tmp_path) == script


def test_the_demo_has_the_time_it_takes_to_clean_up_after_an_interrupt(tmp_path: Path) -> None:
    script = tmp_path / "dev"
    script.write_text(
        "#!/bin/sh\ntrap 'sleep 1; echo cleaned up after $*; exit 130' INT\necho ready\nwhile :; do sleep 0.05; done\n"
    )
    script.chmod(0o755)
    code = (
        "import signal, sys; from pathlib import Path; from ravebot.cli import become;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell's background jobs ignore it
        "become(Path(sys.argv[1]), sys.argv[2:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(script), "demo", "--keep"],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=20)[0] == "cleaned up after demo --keep\n"
    assert process.returncode == 130


def test_ctrl_c_while_the_command_is_loaded_shows_no_traceback() -> None:
    code = (
        "import os, signal, sys; from ravebot.__main__ import main\n"
        "class CtrlC:\n"
        "    def find_spec(name, path, target=None): name != 'typer' or os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, CtrlC); main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_bot_after_its_own_cleaning_up(number: signal.Signals) -> None:
    done: list[str] = []

    async def bot() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            done.append("cleaned up")

    await until_told_to_stop(bot())
    assert done == ["cleaned up"]


async def test_what_fails_on_purpose_comes_out_without_its_task_groups() -> None:
    async def fail(error: Exception) -> None:
        raise error

    async def bot(*errors: Exception) -> None:
        async with asyncio.TaskGroup() as outer:
            for error in errors:
                outer.create_task(fail(error))

    with pytest.raises(Unavailable, match="gone"):
        await until_told_to_stop(bot(Unavailable("gone")))
    with pytest.raises(StoreError, match="held"):
        await until_told_to_stop(fail(StoreError("held")))
    with pytest.raises(BaseExceptionGroup):
        await until_told_to_stop(bot(Unavailable("gone"), KeyError("a mistake of ours")))


def test_what_is_printed_and_what_is_complained_of_keep_their_order_in_one_pipe() -> None:
    script = (
        "from ravebot.terminal import output as o; o.raw('one'); o.complain('two'); o.say('three'); o.complain('four')"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, env=buffered,
    )  # fmt: skip
    assert done.stdout.split() == ["one", "two", "three", "four"]


def test_a_checkout_s_file_is_judged_with_line_and_column(tmp_path: Path) -> None:
    code, text = invoke("project", "check", str(tmp_path))
    assert code == 0
    assert "is not there" in text
    file = tmp_path / ".rave.yml"
    file.write_text("memory: 4GiB\n")
    code, text = invoke("project", "check", str(tmp_path))
    assert code == 0
    assert "is right" in text
    file.write_text("vcpus: 2\nmemori: 4GiB\n")
    code, text = invoke("project", "check", str(file))
    assert code == 1
    assert f"{file}:2:1: memori: unknown key; did you mean memory?" in text.replace("\n", "")
    code, text = invoke("project", "check", "--json", str(tmp_path))
    assert code == 1
    found = json.loads(text)
    assert (found["ok"], found["problems"][0]["line"], found["problems"][0]["column"]) == (False, 2, 1)


def test_a_project_is_begun_and_says_which_lines_its_pipeline_needs(tmp_path: Path) -> None:
    own = tmp_path / ".gitlab-ci.yml"
    own.write_text("build: {script: [make]}\n")
    code, text = invoke("project", "init", str(tmp_path))
    flat = text.replace("\n", "")
    assert code == 0
    assert f"{tmp_path}/.rave.yml: written" in flat
    assert "include:  - local: .gitlab/ravebot.yml" in flat
    assert f"Put ravebot's address into {tmp_path}/.gitlab/ravebot.yml instead of https://ravebot.example.org." in flat
    assert "Next: look at .rave.yml, run `ravebot project check`" in flat
    assert own.read_text() == "build: {script: [make]}\n"
    code, text = invoke("project", "init", str(tmp_path), "--url", "https://rave.example.net")
    assert code == 1
    assert "is not what this command would write: --force writes it anew" in text.replace("\n", "")
    code, text = invoke("project", "init", str(tmp_path / "none"))
    assert code == 1
    assert "is no folder: name that of the project's checkout" in text.replace("\n", " ")


def test_a_symbolic_link_in_a_checkout_is_refused_as_gitlab_would_not_follow_it(tmp_path: Path) -> None:
    (tmp_path / "other.yml").write_text("memory: 4GiB\n")
    (tmp_path / ".rave.yml").symlink_to("other.yml")
    code, text = invoke("project", "check", str(tmp_path))
    assert code == 1
    assert "this is a symbolic link" in text


def test_a_checkout_s_file_is_compared_with_an_operator_s_limits(tmp_path: Path) -> None:
    (tmp_path / ".rave.yml").write_text("memory: 999GiB\n")
    config = tmp_path / "config.yaml"
    config.write_text(
        "matrix: {homeserver: 'https://m.example.org', user_id: '@r:example.org', password_file: /none}\n"
        "gitlab: {url: 'https://gitlab.example.org', token_file: /none, projects: [a/b],\n"
        "  webhook: {secret_token_file: /none}}\n"
        "sandbox: {host: sandboxes.example.net}\nprovider: {image: /none}\n"
    )
    code, text = invoke("project", "check", str(tmp_path), "--config", str(config))
    assert code == 0
    assert "asks for 999 GiB of memory; it gets 8 GiB, the most here" in text


def test_the_schema_of_a_project_s_file_is_printed_for_editors() -> None:
    code, text = invoke("project", "schema")
    assert code == 0
    assert set(json.loads(text)["properties"]) >= {"memory", "setup", "start"}
