"""Secrets come from files that only their owner may read, and no message repeats one."""

from __future__ import annotations

import os
import struct
from datetime import timedelta
from pathlib import Path

import pytest

from ravebot.config.file import InvalidConfigError
from ravebot.config.secrets import read_secret
from tests.support.config_folder import EXAMPLE, HIDDEN, MINIMAL, Folder, example_with_secrets


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_right_file_loads_with_its_secrets_and_defaults(folder: Folder) -> None:
    folder.secret("gitlab", "token\n")
    loaded = folder.load()
    assert loaded.config.pool.lifetime == timedelta(hours=2)
    assert loaded.secrets.gitlab_token == "token"
    assert loaded.secrets.webhook_signing is None
    assert loaded.warnings == ()


def test_secrets_show_nothing_of_themselves(folder: Folder) -> None:
    loaded = folder.load()
    assert HIDDEN not in repr(loaded)
    assert HIDDEN not in f"{loaded.secrets} {loaded!s}"
    assert loaded.secrets.values() == {HIDDEN}


AGENT = """
api: {{listen: "127.0.0.1:8081"}}
agents:
  - {{name: helper, owner: bob, projects: [group/app], inbox: true}}
  - name: reviewer
    owner: bob
    projects: [group/app]
    webhook:
      url: https://reviewer.example.net/hook
      signing_key_file: {secrets}/key
"""


def test_the_signing_key_of_an_agent_is_read_with_the_others_and_hidden_like_them(folder: Folder) -> None:
    key = f"whsec_{'A' * 43}="
    folder.secret("key", f"{key}\n")
    secrets = folder.load(folder.minimal() + AGENT.format(secrets=folder.path)).secrets
    assert secrets.agent_signing == {"reviewer": key}
    assert secrets.values() == {HIDDEN, key}


@pytest.mark.parametrize("content", ["whsec_short", HIDDEN, "whsec_c2hvcnQ="])
def test_what_is_no_signing_key_is_refused_at_its_line_and_not_repeated(folder: Folder, content: str) -> None:
    folder.secret("key", content)
    [problem] = folder.problems(folder.minimal() + AGENT.format(secrets=folder.path))
    assert problem.path == "agents[1].webhook.signing_key_file"
    assert "docs/agents.md makes one" in problem.message
    assert content not in str(problem)


def test_no_message_repeats_a_value_where_a_secret_may_have_been_pasted(folder: Folder) -> None:
    text = folder.minimal((f"token_file: {folder.path}/gitlab", f"token_file: {HIDDEN}"))
    with pytest.raises(InvalidConfigError) as caught:
        folder.load(text + f"pasword: {HIDDEN}\n")
    assert len(caught.value.problems) == 2
    assert HIDDEN not in str(caught.value)


def test_exactly_one_login_is_wanted(folder: Folder) -> None:
    (problem,) = folder.problems(folder.minimal((f"  password_file: {folder.path}/matrix\n", "")))
    assert (problem.path, problem.message) == ("matrix", "give exactly one of password_file and access_token_file")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o660])
def test_a_secret_that_others_may_read_or_write_is_refused(folder: Folder, mode: int) -> None:
    file = folder.secret("gitlab", mode=mode)
    problem = folder.one()
    assert problem.path == "gitlab.token_file"
    assert f"chmod 600 {file}" in problem.message


ACL_READER = 4711


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The attribute with these entries of tag, permissions and id: linux/posix_acl_xattr.h."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.mark.parametrize(
    ("group", "reader", "accepted"),
    [(0, ACL_READER, True), (4, ACL_READER, False), (0, ACL_READER + 1, False)],
    ids=["reader", "group", "another"],
)
def test_a_secret_with_an_access_list_may_be_read_by_its_owners_only(
    folder: Folder, group: int, reader: int, accepted: bool
) -> None:
    file = folder.secret("gitlab", mode=0o400)
    anybody = 0xFFFFFFFF
    entries = ((1, 4, anybody), (2, 4, reader), (4, group, anybody), (0x10, 4, anybody), (0x20, 0, anybody))
    os.setxattr(file, "system.posix_acl_access", acl(*entries))
    assert file.stat().st_mode & 0o777 == 0o440  # the mask stands where the group's bits are
    owners = {os.getuid(), ACL_READER}
    if accepted:
        assert read_secret(file, owners) == HIDDEN
    else:
        with pytest.raises(ValueError, match="others may read"):
            read_secret(file, owners)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_secret_that_belongs_to_another_user_is_refused(folder: Folder) -> None:
    file = folder.secret("gitlab")
    os.chown(file, 12345, 12345)
    problem = folder.one()
    assert problem.path == "gitlab.token_file"
    assert "belongs to user 12345" in problem.message
    assert "chown" in problem.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_root_reads_the_secrets_of_the_user_that_runs_ravebot(folder: Folder) -> None:
    state = folder.path / "state"
    state.mkdir()
    for path in (state, folder.path / "gitlab"):
        os.chown(path, 12345, 12345)
    folder.load(folder.minimal() + f"state_dir: {state}\n")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        (" \n\t\n", "is empty"),
        ("one\ntwo\n", "more than one line"),
        ("a\x00b", "control characters"),
        (b"\xff\xfe", "not UTF-8"),
        ("x" * 70_000, "larger than 64 KiB"),
    ],
)
def test_a_secret_file_that_holds_no_secret_is_refused(folder: Folder, content: str | bytes, says: str) -> None:
    folder.secret("webhook", content)
    problem = folder.one()
    assert problem.path == "gitlab.webhook.secret_token_file"
    assert says in problem.message


def test_a_secret_that_is_missing_a_folder_or_a_pipe_is_refused(folder: Folder) -> None:
    for name in ("matrix", "gitlab", "webhook"):
        (folder.path / name).unlink()
    (folder.path / "gitlab").mkdir(mode=0o700)
    os.mkfifo(folder.path / "webhook", 0o600)
    messages = {problem.path: problem.message for problem in folder.problems()}
    assert "there is no file" in messages["matrix.password_file"]
    assert "is a folder" in messages["gitlab.token_file"]
    assert "not a regular file" in messages["gitlab.webhook.secret_token_file"]


def test_the_example_is_right_but_for_its_secret_files(folder: Folder) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        folder.load(EXAMPLE.read_text().replace("/etc/ravebot/secrets", str(folder.path / "none")))
    assert all("there is no file" in problem.message for problem in caught.value.problems)
    loaded = folder.load(example_with_secrets(folder))
    assert [warning.split(":")[0] for warning in loaded.warnings] == ["access.allow_from"]


MODELS = """
models:
  - {name: small, url: "http://127.0.0.1:1", paths: [/v1/messages], allow: ["*"]}
  - {name: big, url: "https://api.example.org", key_file: FILE, paths: [/v1/messages], allow: ["*"]}
"""


def test_the_key_of_a_model_is_read_and_hidden(folder: Folder) -> None:
    folder.secret("key", "the key of the model")
    text = MINIMAL.format(secrets=folder.path) + MODELS.replace("FILE", str(folder.path / "key"))
    loaded = folder.load(text)
    assert loaded.secrets.model_keys == {"big": "the key of the model"}
    assert "the key of the model" in loaded.secrets.values()
    assert "the key of the model" not in f"{loaded}"


def test_a_key_that_is_not_there_is_said_at_its_line(folder: Folder) -> None:
    text = MINIMAL.format(secrets=folder.path) + MODELS.replace("FILE", "/nowhere/key")
    with pytest.raises(InvalidConfigError) as caught:
        folder.load(text)
    (problem,) = caught.value.problems
    assert (problem.path, "there is no file /nowhere/key" in problem.message) == ("models[1].key_file", True)
    assert problem.line == len(text.splitlines())
