"""What init asks, writes and prints: the table, the configuration's text, files, and the proxy's blocks."""

from __future__ import annotations

import inspect
import io
import os
import stat
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import TypeVar, cast

import pytest
import yaml
from rich.console import Console

from ravebot.config.complaints import every_key
from ravebot.config.file import InvalidConfigError, judge
from ravebot.config.model import CiConfig
from ravebot.config.tree import KeyPath, Value
from ravebot.errors import ConfigError, Refused
from ravebot.operations.doctor.finding import Finding
from ravebot.operations.doctor.matrix import Login
from ravebot.operations.init import alerting, draft, proxy, trials, write
from ravebot.operations.init.asking import TerminalRespondent
from ravebot.operations.init.flow import Interview, missing, usable
from ravebot.operations.init.given import begin
from ravebot.operations.init.inquiry import Asked, Inquiry, Question, Trial, secrets_folder
from ravebot.operations.init.matrix import PendingInvite, invite_to
from ravebot.operations.init.questions import BY_NAME, QUESTIONS, named
from ravebot.terminal import Output
from tests.support.prometheus import MONITORING

T = TypeVar("T")
PATH = Path("/etc/ravebot/config.yaml")
ANSWERS = {
    "instance": "main",
    "state_dir": "/var/lib/ravebot",
    "matrix_user": "@ravebot:example.org",
    "matrix_homeserver": "https://matrix.example.org",
    "gitlab_url": "https://gitlab.example.org",
    "projects": "group/app, tools/*",
    "admins": "@ops:example.org",
    "users": "@ops:example.org=ops",
    "room": "#dev:example.org",
    "sandbox_host": "boxes.example.net",
    "allow_from": "192.0.2.0/24, 198.51.100.0/24",
    "public_url": "https://ravebot.example.org",
    "image": "/images/a b.qcow2",
    "listen": "127.0.0.1:8081",
    "bridge": "ravebot1",
    "subnet": "10.81.0.0/24",
    "ssh_ports": "2300-2399",
    "web_ports": "3100-3199",
    "storage_pool": "/var/lib/ravebot/disks",
}
SECRETS = {"matrix_password": "hush-1", "gitlab_token": "hush-2", "webhook_secret": "hush-3"}


def inquiry(existing: dict[str, Value] | None = None, path: Path = PATH, **changes: str) -> Inquiry:
    return Inquiry(BY_NAME, path, existing or {}, answers={**ANSWERS, **changes}, secrets=dict(SECRETS))


def test_every_question_has_a_key_of_the_configuration_and_an_option_of_its_own() -> None:
    assert {question.key for question in QUESTIONS} <= set(every_key())
    assert len({question.option for question in QUESTIONS}) == len(QUESTIONS) == len(BY_NAME)


@pytest.mark.parametrize("word", ["sandbox_host", "sandbox-host", "--sandbox-host", "sandbox.host"])
def test_an_answer_is_named_by_its_name_its_option_or_its_key(word: str) -> None:
    assert named(word) is BY_NAME["sandbox_host"]
    assert named("--gitlab-token-file") is BY_NAME["gitlab_token"]
    assert named("https://gitlab.example.org") is None


def test_enter_alone_at_the_password_is_said_to_do_one_thing_only() -> None:
    password = BY_NAME["matrix_password"]
    assert "access token" in password.hint()
    assert "access token" not in password.hint(kept=True)


def test_a_long_line_is_wrapped_under_its_beginning() -> None:
    output = Output()
    output.errors = Console(file=io.StringIO(), width=20)
    with output.errors.capture() as shown:
        TerminalRespondent(output).say("  - make the room and invite somebody")
    assert [line.rstrip() for line in shown.get().splitlines()] == ["  - make the room", "  and invite", "  somebody"]


def test_a_secret_is_a_file_and_has_no_variable() -> None:
    secret = [question for question in QUESTIONS if question.secret]
    assert {question.name for question in secret} >= {"matrix_password", "matrix_token", "gitlab_token"}
    assert all(question.variable is None and question.option.endswith("-file") for question in secret)
    assert all(question.variable for question in QUESTIONS if not question.secret)


def test_a_person_is_asked_at_most_ten_questions() -> None:
    assert sum(question.asked is Asked.ALWAYS for question in QUESTIONS) <= 10
    assert [question.name for question in QUESTIONS if question.asked is Asked.OFFERED] == ["alerts_room"]


def test_what_is_asked_is_tested_at_once_unless_its_form_says_all() -> None:
    untested = {question.name for question in QUESTIONS if question.asked is Asked.ALWAYS and question.test is None}
    assert untested == {"matrix_user", "allow_from"}


def test_a_new_configuration_holds_the_answers_and_no_secret() -> None:
    text = draft.fresh(inquiry().values())
    config, warnings = judge(PATH, text)
    assert warnings == ()
    assert config.provider.image == Path("/images/a b.qcow2")
    assert config.matrix.users == {"@ops:example.org": "ops"}
    assert config.matrix.rooms[0].projects == ("group/app", "tools/*")
    assert [str(network) for network in config.access.allow_from] == ["192.0.2.0/24", "198.51.100.0/24"]
    assert str(config.provider.bridge.subnet) == "10.81.0.0/24"
    assert config.gitlab.webhook.secret_token_file == Path("/etc/ravebot/secrets/gitlab-webhook")
    assert "hush" not in text


def test_everybody_is_an_empty_list() -> None:
    config, _ = judge(PATH, draft.fresh(inquiry(allow_from="any").values()))
    assert config.access.allow_from == ()


OLD = """\
# by hand
matrix: {homeserver: "https://old.example.org", user_id: "@ravebot:example.org", password_file: /x/pw}
gitlab:
  url: https://gitlab.example.org   # ours
  projects:
    - group/app   # the app
    - group/gone
  # a comment of the webhook
  webhook: {secret_token_file: /x/hook}
  token_file: /x/token
sandbox:
  host: boxes.example.net
  memory: 2GiB
provider:
  image: /images/old.qcow2
pool: {max_running: 7}
"""


def changed(values: dict[KeyPath, Value], removed: tuple[KeyPath, ...] = ()) -> str:
    return draft.edit(OLD, values, removed)


def test_an_existing_configuration_keeps_all_that_init_does_not_know_and_the_comments() -> None:
    text = changed(
        {
            ("matrix", "homeserver"): "https://matrix.example.org",
            ("gitlab", "projects"): ["group/app", "new/*"],
            ("sandbox", "web_ports"): "3100-3199",
            ("matrix", "admins"): ["@ops:example.org"],
            ("http", "listen"): "127.0.0.1:8081",
            ("provider", "bridge", "subnet"): "10.81.0.0/24",
        }
    )
    assert "# by hand\n" in text
    assert "https://gitlab.example.org   # ours\n" in text
    assert "# a comment of the webhook\n" in text
    value = yaml.safe_load(text)
    assert value["pool"] == {"max_running": 7}
    assert value["matrix"]["homeserver"] == "https://matrix.example.org"
    assert value["matrix"]["admins"] == ["@ops:example.org"]
    assert value["gitlab"]["projects"] == ["group/app", "new/*"]
    assert '    - group/app\n    - "new/*"\n' in text  # in the style that was there
    assert value["sandbox"] == {"host": "boxes.example.net", "memory": "2GiB", "web_ports": "3100-3199"}
    assert value["provider"] == {"image": "/images/old.qcow2", "bridge": {"subnet": "10.81.0.0/24"}}


def test_the_same_values_change_nothing() -> None:
    assert changed({("gitlab", "projects"): ["group/app", "group/gone"], ("sandbox", "memory"): "2GiB"}) == OLD
    assert draft.difference(OLD, OLD, PATH) == []


def test_what_the_defaults_say_is_not_added_to_an_existing_configuration() -> None:
    existing = yaml.safe_load(OLD)
    values: dict[KeyPath, Value] = {("provider", "bridge", "name"): "ravebot0", ("sandbox", "web_ports"): "3100-3199"}
    assert list(draft.without_unchanged_defaults(values, existing)) == [("sandbox", "web_ports")]


@pytest.mark.parametrize("path", [("matrix", "password_file"), ("gitlab", "token_file"), ("pool", "max_running")])
def test_a_key_is_taken_out_wherever_it_stands(path: KeyPath) -> None:
    value = yaml.safe_load(changed({}, (path,)))
    assert path[1] not in value[path[0]]
    assert yaml.safe_load(OLD).keys() == value.keys()


def test_what_can_not_be_edited_is_refused_instead_of_damaged() -> None:
    text = "a: &x {host: one}\nsandbox: *x\n"
    with pytest.raises(ConfigError, match="by hand"):
        draft.edit(text, {("sandbox", "host"): "two"})


def test_each_configuration_of_a_folder_has_secrets_of_its_own() -> None:
    assert secrets_folder(PATH) == Path("/etc/ravebot/secrets")
    assert secrets_folder(Path("/etc/ravebot/second.yaml")) == Path("/etc/ravebot/second-secrets")


def test_the_first_room_s_name_changes_and_the_other_rooms_stay() -> None:
    rooms: Value = [{"room": "#a:x.org", "projects": ["group/one"]}, {"room": "#b:x.org", "projects": ["group/two"]}]
    found = inquiry({"matrix": {"rooms": rooms}}, room="#c:x.org").values()[("matrix", "rooms")]
    assert found == [{"room": "#c:x.org", "projects": ["group/one"]}, {"room": "#b:x.org", "projects": ["group/two"]}]


def test_what_an_existing_configuration_leaves_to_a_default_stays_at_it() -> None:
    """A free bridge would be another one than that of the running bot."""
    asked = inquiry({"sandbox": {"host": "boxes.example.net"}})
    names = ("bridge", "subnet", "ssh_ports", "state_dir", "instance", "users", "listen")
    assert [asked.old(BY_NAME[name]) for name in names] == [
        "ravebot0", "10.80.0.0/24", "2200-2299", "/var/lib/ravebot", "main", "", "127.0.0.1:8080",
    ]  # fmt: skip
    assert inquiry().old(BY_NAME["bridge"]) is None


def test_mistakes_that_no_answer_mends_are_told_before_the_first_question(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("sandbox: {host: 7}\npool: {max_runing: 2}\ngitlab: {projects: []}\n")
    with pytest.raises(InvalidConfigError) as raised:
        begin(path)
    assert [problem.path for problem in raised.value.problems] == ["pool.max_runing"]


def test_a_secret_is_not_used_for_another_server_than_the_one_it_is_for() -> None:
    asked = inquiry({"gitlab": {"url": "https://gitlab.example.org"}})
    asked.kept_secrets = {"gitlab_token": "hush"}
    assert usable(asked, {}, "gitlab_token")
    assert usable(asked, {"gitlab_url": "https://gitlab.example.org"}, "gitlab_token")
    assert not usable(asked, {"gitlab_url": "https://evil.example.org"}, "gitlab_token")
    assert BY_NAME["gitlab_token"] in missing(asked, {"gitlab_url": "https://evil.example.org"})


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("matrix_user", "ravebot", "write a Matrix id, like"),
        ("sandbox_host", "gitlab.example.org", "GitLab's host name"),
        ("sandbox_host", "example.org", "parent domain"),
        ("public_url", "https://boxes.example.net", "ravebot's host name"),
        ("subnet", "8.8.8.0/24", "not a private network"),
        ("allow_from", "10.81.0.0/25", "own subnet"),
        ("listen", "127.0.0.1:3150", "is ravebot's own"),
        ("users", "", ""),
        ("room", "#dev:example.org", ""),
    ],
)
def test_an_answer_is_judged_by_itself_and_beside_the_others(name: str, text: str, says: str) -> None:
    told = " ".join(inquiry().complaints(name, text))
    assert says in told
    assert bool(told) == bool(says)


def test_the_proxy_s_blocks_hold_only_what_fits_the_answers() -> None:
    config, _ = judge(PATH, draft.fresh(inquiry(public_url="https://rave.example.org:8443").values()))
    assert proxy.needed(config)
    assert "rave.example.org:8443 {" in proxy.caddy(config)
    assert "reverse_proxy 127.0.0.1:8081" in proxy.caddy(config)
    assert "listen 8443 ssl;" in proxy.nginx(config)
    assert "proxy_pass http://127.0.0.1:8081;" in proxy.nginx(config)
    assert "/api/v1/ci" not in proxy.caddy(config) + proxy.nginx(config)
    ci = config.model_copy(update={"gitlab": config.gitlab.model_copy(update={"ci": CiConfig()})})
    assert "handle /api/v1/ci/* {\n        reverse_proxy 127.0.0.1:8081\n    }\n    respond 404" in proxy.caddy(ci)
    assert "location /api/v1/ci/ {\n        proxy_pass http://127.0.0.1:8081;" in proxy.nginx(ci)
    assert "GitLab and its runners" in proxy.ports(ci)[0]
    assert proxy.ports(config) == [
        "8443/tcp from GitLab: the proxy, for webhooks",
        "2300-2399/tcp and 3100-3199/tcp from 192.0.2.0/24, 198.51.100.0/24: the sandboxes",
    ]


def test_without_tls_no_proxy_is_needed() -> None:
    config, _ = judge(PATH, draft.fresh(inquiry(public_url="http://192.0.2.7:8081").values()))
    assert not proxy.needed(config)
    assert proxy.ports(config)[0] == "8081/tcp from GitLab: webhooks, without TLS"


@pytest.mark.parametrize(
    ("test", "text", "wrong"),
    [
        (trials.public_url, "http://localhost", True),
        (trials.public_url, "http://localhost:8080", False),
        (trials.public_url, "https://localhost", False),
        (trials.listen, "127.0.0.1:443", True),
    ],
)
async def test_a_port_on_which_the_services_user_can_not_listen_is_refused(test: Trial, text: str, wrong: bool) -> None:
    begun = inquiry()
    begun.least_port = 1024
    (found,) = await test(begun, text)
    assert ("can't listen on port" in found.detail, "from 1024 on" in found.fix) == (wrong, wrong)


def test_bytes_that_are_no_text_are_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    typed = TerminalRespondent(Output()).ask(BY_NAME["gitlab_url"], "https://gitlab.example.org")
    assert not typed.isprintable(), "init refuses it, and asks again"


def test_an_invite_tells_who_invited_and_whether_the_room_is_encrypted() -> None:
    member = {"type": "m.room.member", "state_key": "@r:x", "sender": "@a:x", "content": {"membership": "invite"}}
    events: list[object] = [member, {"type": "m.room.encryption"}, 7]
    assert invite_to({"invite_state": {"events": events}}, "@r:x") == PendingInvite("@a:x", encrypted=True)
    assert invite_to({"invite_state": {"events": [member]}}, "@r:x") == PendingInvite("@a:x", encrypted=False)
    assert invite_to({"invite_state": {"events": events}}, "@other:x") is None
    assert invite_to(None, "@r:x") is None


def test_a_file_has_its_mode_from_the_first_moment_and_replaces_the_old_one_whole(tmp_path: Path) -> None:
    folder = tmp_path / "etc" / "secrets"
    write.make_folder(folder, 0o700, None, {0, os.geteuid()})
    path = folder / "token"
    for text in ("one\n", "two\n"):
        write.write_file(path, text, 0o600, None)
        assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (text, 0o600)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [one.name for one in folder.iterdir()] == ["token"]


def test_a_configuration_that_nobody_else_may_read_stays_so(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write.write_public(path, "a: 1\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 0, 64_002)
    before = path.stat()
    write.write_public(path, "a: 2\n")
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert path.read_text() == "a: 2\n"


def test_a_folder_that_others_may_change_is_refused(tmp_path: Path) -> None:
    owners = {0, os.geteuid()}
    folder = tmp_path / "etc"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(Refused, match="chmod go-w"):
        write.check_folder(folder, owners)
    with pytest.raises(Refused, match="chmod go-w"):
        write.check_folder(folder / "secrets", owners)
    folder.chmod(0o1777)  # like /tmp: fine for what is below, not for files in it
    write.check_folder(folder / "secrets", owners)
    with pytest.raises(Refused, match="chmod go-w"):
        write.check_folder(folder, owners)


def test_no_link_is_followed(tmp_path: Path) -> None:
    owners = {0, os.geteuid()}
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(Refused, match="is a link to real"):
        write.check_folder(tmp_path / "link" / "secrets", owners)
    (tmp_path / "real" / "token").symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="is a link to /etc/passwd"):
        write.check_file(tmp_path / "real" / "token")


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="belongs to user"):
        write.check_folder(tmp_path, {tmp_path.stat().st_uid + 1} | {0} - {tmp_path.stat().st_uid})


class Person:
    """Answers from a list, and notes what was asked."""

    def __init__(self, answers: list[str]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def ask(self, question: Question, proposal: str | None) -> str:
        self.asked.append(question.name)
        return self.answers.pop(0)

    def decide(self, question: str) -> str:
        return ""

    def show(self, findings: Iterable[Finding]) -> None: ...

    def say(self, text: str, style: str = "") -> None: ...


@pytest.mark.parametrize(
    ("name", "answer", "asked"),
    [
        ("gitlab_url", "https://other.example.org", ["gitlab_token"]),
        ("matrix_homeserver", "https://other.example.org", ["matrix_password", "matrix_token"]),
        ("matrix_user", "@r:other.example.org", ["matrix_homeserver", "matrix_password", "matrix_token"]),
        ("matrix_user", "@r:example.org", ["matrix_password", "matrix_token"]),
        ("gitlab_url", ANSWERS["gitlab_url"], []),
    ],
)
def test_another_server_or_account_is_sent_no_secret_of_the_earlier_one(
    name: str, answer: str, asked: list[str]
) -> None:
    begun = inquiry()
    tested: list[dict[str, str]] = []

    def run(coro: Coroutine[object, object, T]) -> T:
        coro.close()
        tested.append(dict(begun.secrets))
        return cast(T, [])

    typed = {"matrix_homeserver": "https://other.example.org", "matrix_password": ""}
    person = Person([answer, *(typed.get(one, f"new {one}") for one in asked)])
    Interview(begun, {}, person, run, brief=False).again(name)
    assert person.asked == [name, *asked]
    for secret in asked:
        assert all(seen.get(secret) != SECRETS.get(secret, "") for seen in tested[1:])
        assert (
            BY_NAME[secret].secret is False or secret == "matrix_password" or begun.secrets[secret] == f"new {secret}"
        )
    assert ("matrix_token" in asked) == ("matrix_password" not in begun.secrets)


def found_right(coro: Coroutine[object, object, T]) -> T:
    """Proposals are made; every test finds that all is well."""
    if inspect.iscoroutine(coro) and coro.cr_code.co_name == "usage_report":
        with pytest.raises(StopIteration) as done:
            coro.send(None)
        return cast(T, done.value.value)
    coro.close()
    return cast(T, [])


ALERTS: dict[str, Value] = {
    "matrix": {"operations_room": "#ops:example.org"},
    "monitoring": {"alertmanager_token_file": "/x/alertmanager"},
}


def interviewed(existing: dict[str, Value], answer: str | None, **given: str) -> tuple[Inquiry, Interview, Person]:
    """What is known after an interview in which all is given but for alerts; None: nobody is there to be asked."""
    begun = Inquiry(BY_NAME, PATH, existing, login=Login("token", "device"))
    begun.kept_secrets = {"alertmanager_token": "kept"} if "monitoring" in existing else {}
    person = Person([] if answer is None else [answer])
    interview = Interview(begun, {**ANSWERS, **SECRETS, **given}, person, found_right, brief=answer is None)
    interview.hold()
    return begun, interview, person


def test_a_room_for_alerts_brings_their_token_and_the_weekly_report() -> None:
    begun, interview, person = interviewed({}, "#ops:example.org")
    assert person.asked == ["alerts_room"]
    text = draft.fresh(begun.values())
    config, warnings = judge(PATH, text)
    assert warnings == ()
    assert config.matrix.operations_room == config.monitoring.usage_report == "#ops:example.org"
    assert config.monitoring.alertmanager_token_file == Path("/etc/ravebot/secrets/alertmanager-token")
    assert len(token := begun.secrets["alertmanager_token"]) == 64
    assert token not in text

    person.answers = [""]
    interview.again("alerts_room")
    assert "alertmanager_token" not in begun.secrets
    assert not {"matrix.operations_room", "monitoring.usage_report"} & {
        ".".join(map(str, key)) for key in begun.values()
    }


@pytest.mark.parametrize("answer", ["", None])
@pytest.mark.parametrize("existing", [{}, {"matrix": {"operations_room": "#ops:example.org"}}])
def test_enter_alone_or_a_script_that_does_not_ask_for_alerts_changes_nothing_of_them(
    existing: dict[str, Value], answer: str | None
) -> None:
    begun, _, _ = interviewed(existing, answer)
    touched = {".".join(map(str, key)) for key in begun.values()}
    assert [key for key in touched if key.startswith("monitoring") or key == "matrix.operations_room"] == []


@pytest.mark.parametrize("answer", ["#ops:example.org", None])
def test_alerts_that_are_set_up_stay_so_with_their_token_and_no_report_that_nobody_wanted(answer: str | None) -> None:
    begun, _, _ = interviewed(ALERTS, answer)
    assert begun.secrets["alertmanager_token"] == "kept"
    assert begun.values()["monitoring", "alertmanager_token_file"] == "/x/alertmanager"
    assert begun.values()["matrix", "operations_room"] == "#ops:example.org"
    assert "usage_report" not in {name for name, text in begun.answers.items() if text}


def test_the_lines_for_alertmanager_are_those_of_the_example() -> None:
    config, _ = judge(PATH, draft.fresh(interviewed({}, "#ops:example.org", listen="127.0.0.1:8080")[0].values()))
    [printed] = yaml.safe_load(alerting.receiver(config))["receivers"]
    example = yaml.safe_load((MONITORING / "alertmanager" / "alertmanager.yml").read_text())
    assert printed in example["receivers"]
    token = "/etc/ravebot/secrets/alertmanager-token /etc/alertmanager/ravebot-token"
    assert alerting.copying(config) == f"install -D -o prometheus -m 600 {token}"
    everywhere = config.model_copy(update={"http": config.http.model_copy(update={"listen": "0.0.0.0:9000"})})
    assert "url: http://127.0.0.1:9000/webhooks/alertmanager\n" in alerting.receiver(everywhere)


def test_a_proposal_that_can_not_be_made_is_asked_for() -> None:
    begun = Inquiry(BY_NAME, PATH, login=Login("token", "device"))
    given = {**ANSWERS, **SECRETS}
    del given["sandbox_host"]

    def run(coro: Coroutine[object, object, T]) -> T:
        assert inspect.iscoroutine(coro)
        coro.close()
        if coro.cr_code.co_filename.endswith("proposals.py"):
            raise UnicodeError("this host's name has an empty label")
        return cast(T, [])

    person = Person(["192.0.2.7"])
    Interview(begun, given, person, run, brief=True).hold()
    assert (person.asked, begun.answers["sandbox_host"]) == (["sandbox_host"], "192.0.2.7")
