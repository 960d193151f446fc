"""The table of questions: where each answer goes, how it is asked for, and what tests it.

Nothing here imports the doctor or a network library: the command line is made from this table at each start.
"""

from __future__ import annotations

from ravebot.config.tree import Key, KeyPath, dotted
from ravebot.operations.init import proposals, trials
from ravebot.operations.init.inquiry import Asked, Form, Question


def _key(dotted: str) -> KeyPath:
    return tuple[Key, ...](dotted.split("."))


QUESTIONS: tuple[Question, ...] = (
    Question(
        "instance", _key("instance"), "Name of this installation",
        "Name of this installation; two on one host need different ones.",
        asked=Asked.NEVER, needed=False, propose=proposals.instance,
    ),
    Question(
        "state_dir", _key("state_dir"), "State folder",
        "Folder for the database, the Matrix login and the disks.",
        asked=Asked.NEVER, needed=False, propose=proposals.state_dir,
    ),
    Question(
        "matrix_user", _key("matrix.user_id"), "Matrix id of ravebot's account",
        "Matrix id of ravebot's account, like @ravebot:example.org.",
    ),
    Question(
        "matrix_homeserver", _key("matrix.homeserver"), "Address of its homeserver",
        "Base address of the homeserver; found from the user id if its server publishes it.",
        asked=Asked.IF_UNKNOWN, needed=False, test=trials.homeserver, propose=proposals.homeserver,
    ),
    Question(
        "matrix_password", _key("matrix.password_file"), "Password of that account",
        "File with that account's password.",
        Form.SECRET, needed=False, test=trials.password,
    ),
    Question(
        "matrix_token", _key("matrix.access_token_file"), "Access token of that account",
        "File with an access token of that account, instead of the password.",
        Form.SECRET, asked=Asked.NEVER, needed=False, test=trials.access_token,
    ),
    Question(
        "gitlab_ca_file", _key("gitlab.ca_file"), "CA of GitLab's certificate",
        "File with the certificate of GitLab's own CA, in PEM; by default this host must trust it.",
        asked=Asked.NEVER, needed=False, test=trials.ca_file,
    ),
    Question(
        "gitlab_proxy", _key("gitlab.proxy"), "HTTP proxy between ravebot and GitLab",
        "HTTP proxy between ravebot and GitLab, like http://proxy.example.org:3128; by default there is none.",
        asked=Asked.NEVER, needed=False,
    ),
    Question(
        "gitlab_url", _key("gitlab.url"), "Address of GitLab",
        "GitLab's base address, without /api.", test=trials.gitlab,
    ),
    Question(
        "gitlab_token", _key("gitlab.token_file"), "GitLab token with scope api",
        "File with a token of ravebot's GitLab user (personal, group or project) with scope api.",
        Form.SECRET, test=trials.gitlab_token,
    ),
    Question(
        "projects", _key("gitlab.projects"), "Projects that get sandboxes",
        "Projects whose merge requests get sandboxes, with commas: group/app,tools/*.",
        Form.LIST, test=trials.projects, propose=proposals.projects,
    ),
    Question(
        "admins", _key("matrix.admins"), "Matrix ids of the admins",
        "Who may invite ravebot to rooms and use every command, with commas: @ops:example.org.",
        Form.LIST, test=trials.admins,
    ),
    Question(
        "users", _key("matrix.users"), "Who is who in GitLab",
        "Who is who, with commas: @alice:example.org=alice. Admins with the same name in GitLab are found.",
        Form.PAIRS, asked=Asked.NEVER, needed=False, propose=proposals.users,
    ),
    Question(
        "room", _key("matrix.rooms"), "Room that is told of sandboxes",
        "Alias or id of the room that is told of sandboxes; an alias that does not exist is made, unencrypted.",
        Form.ROOM, test=trials.room, propose=proposals.room,
    ),
    Question(
        "sandbox_host", _key("sandbox.host"), "Name or address of this host for people's browsers and SSH",
        "DNS name or IPv4 address of this host that people connect to; not GitLab's, Matrix's or ravebot's name.",
        test=trials.sandbox_host, propose=proposals.sandbox_host,
    ),
    Question(
        "allow_from", _key("access.allow_from"), "Networks that may reach sandboxes",
        "Networks that may reach sandboxes, with commas: 192.0.2.0/24; `any` for everybody.",
        Form.LIST, propose=proposals.allow_from,
    ),
    Question(
        "public_url", _key("http.public_url"), "Address of ravebot for GitLab's webhooks",
        "Address at which GitLab reaches ravebot, like https://ravebot.example.org: that of a TLS proxy on this host.",
        test=trials.public_url, propose=proposals.public_url,
    ),
    Question(
        "alerts_room", _key("matrix.operations_room"), "Room for alerts and the weekly usage report",
        "Alias or id of a room in which Prometheus' alerts and each week's usage are told; made if it does not exist.",
        asked=Asked.OFFERED, needed=False, test=trials.room, beside=_key("monitoring.alertmanager_token_file"),
    ),
    Question(
        "image", _key("provider.image"), "Image for the machines",
        "qcow2 file that machines start from; one that does not exist is built (preset web, about a minute).",
        asked=Asked.IF_UNKNOWN, needed=False, test=trials.image, propose=proposals.image,
    ),
    Question(
        "listen", _key("http.listen"), "Own address and port",
        "Address and port that ravebot listens on, behind the proxy; a free one is chosen.",
        asked=Asked.NEVER, needed=False, test=trials.listen, propose=proposals.listen,
    ),
    Question(
        "bridge", _key("provider.bridge.name"), "Bridge of the sandboxes' network",
        "Name of the sandboxes' bridge; a free one is chosen.",
        asked=Asked.NEVER, needed=False, test=trials.network, propose=proposals.bridge,
    ),
    Question(
        "subnet", _key("provider.bridge.subnet"), "Network of the sandboxes",
        "Private network of the sandboxes; one that this host has no route to is chosen.",
        asked=Asked.NEVER, needed=False, test=trials.network, propose=proposals.subnet,
    ),
    Question(
        "ssh_ports", _key("sandbox.ssh_ports"), "Ports for SSH",
        "Ports for SSH to sandboxes; free ones are chosen.",
        asked=Asked.NEVER, needed=False, test=trials.ports, propose=proposals.ssh_ports,
    ),
    Question(
        "web_ports", _key("sandbox.web_ports"), "Ports for browsers",
        "Ports for sandboxes' web pages; free ones are chosen.",
        asked=Asked.NEVER, needed=False, test=trials.ports, propose=proposals.web_ports,
    ),
    Question(
        "storage_pool", _key("provider.storage_pool"), "Folder of the machines' disks",
        "Folder of the machines' disks; by default in the state folder.",
        asked=Asked.NEVER, needed=False, propose=proposals.storage_pool,
    ),
    Question(
        "webhook_secret", _key("gitlab.webhook.secret_token_file"), "Secret of the webhooks",
        "File with the webhooks' secret token; by default 32 random bytes.",
        Form.SECRET, asked=Asked.NEVER, needed=False,
    ),
    Question(
        "webhook_signing_token", _key("gitlab.webhook.signing_token_file"), "Signing token of the webhooks",
        "File with the webhooks' signing token (whsec_…), beside the secret token.",
        Form.SECRET, asked=Asked.NEVER, needed=False, test=trials.signing_token,
    ),
    Question(
        "alertmanager_token", _key("monitoring.alertmanager_token_file"), "Token of Alertmanager",
        "File with the token with which Alertmanager sends alerts; with --alerts-room by default 32 random bytes.",
        Form.SECRET, asked=Asked.FOLLOWS, needed=False,
    ),
    Question(
        "usage_report", _key("monitoring.usage_report"), "Room for the weekly usage report",
        "Room that is told each week what was used; with a new --alerts-room by default that one.",
        asked=Asked.FOLLOWS, needed=False, propose=proposals.usage_report,
    ),
)  # fmt: skip

BY_NAME = {question.name: question for question in QUESTIONS}


def named(word: str) -> Question | None:
    """The question that a person means by its name, its option or its key in the configuration."""
    plain = word.lower().lstrip("-").replace("-", "_")
    by_key = {dotted(question.key): question for question in QUESTIONS}
    return BY_NAME.get(plain) or BY_NAME.get(plain.removesuffix("_file")) or by_key.get(plain)
