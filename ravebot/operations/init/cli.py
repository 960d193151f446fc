"""`ravebot init` on the command line: its options are the table's, and nothing is imported before it runs."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated

import typer

from ravebot.operations.init.inquiry import Question
from ravebot.operations.init.questions import QUESTIONS
from ravebot.terminal import DEFAULT_CONFIG, ConfigPath

HELP = "Ask what an installation needs, test each answer at once, and write configuration and secrets at the end."
_MORE = """\
Nothing is written, and no room or webhook is made, before you have seen the whole configuration and confirmed it.

Every answer can be an option or, secrets excepted, a variable: --gitlab-url or RAVEBOT_INIT_GITLAB_URL. Without a
terminal nothing is asked: all answers that are missing are listed at once. A secret is read from a file of one line,
or from standard input if the file is `-`; never give one as an argument.

If there is a configuration already, its values are the defaults, what init does not know stays as it is, and the
difference is shown.

Ends with 1 if a step or a check failed, and 2 if answers are missing or wrong. Running it again continues.
"""
MORE = "\n\n".join(" ".join(paragraph.split()) for paragraph in _MORE.split("\n\n"))


def command() -> Callable[..., None]:
    """The command's function, with an option for each question."""

    def init(**options: object) -> None:
        from ravebot.operations.init.session import hold

        hold(options)

    own = [
        _parameter("config", ConfigPath, DEFAULT_CONFIG),
        *(_of(question) for question in QUESTIONS),
        _flag("service", "--service", "Install user, folders and units, to run ravebot as a service; needs root."),
        _flag("no_start", "--no-start", "With --service: do not start ravebot at the end."),
        _flag("no_webhooks", "--no-webhooks", "Do not register webhooks in GitLab."),
        _flag("no_ssl_verification", "--no-ssl-verification", "Let GitLab accept any certificate of --public-url."),
        _flag("no_build_image", "--no-build-image", "Do not build the image if its file does not exist."),
        _parameter(
            "link_folder",
            Annotated[Path, typer.Option("--link", metavar="DIR", help="Link `ravebot` there, so that PATH finds it.")],
            Path("/usr/local/bin"),
        ),
        _flag("no_link", "--no-link", "Make no such link."),
        _flag("yes", "--yes", "Take what is proposed and confirm; on a terminal, ask only for the rest."),
        _flag("check", "--check", "Repeat the tests with the existing configuration, and change nothing."),
    ]  # fmt: skip
    init.__signature__ = Signature(own)  # type: ignore[attr-defined]  # typer reads it
    return init


def _of(question: Question) -> Parameter:
    metavar = "FILE" if question.secret else "A,B" if question.form in ("list", "pairs") else "TEXT"
    what = typer.Option(
        question.option, envvar=question.variable, show_envvar=False, metavar=metavar, help=question.help
    )
    return _parameter(question.name, Annotated[str | None, what], None)


def _flag(name: str, option: str, text: str) -> Parameter:
    return _parameter(name, Annotated[bool, typer.Option(option, help=text)], False)


def _parameter(name: str, kind: object, default: object) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=default)
