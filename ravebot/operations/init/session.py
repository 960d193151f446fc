"""One run of `ravebot init`: asks, shows the configuration, asks for confirmation, and lets the steps do it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import typer

from ravebot import logs
from ravebot.config.file import LoadedConfig, judge, load
from ravebot.errors import RavebotError
from ravebot.operations.doctor import Verdict, show
from ravebot.operations.init import alerting, draft, proxy
from ravebot.operations.init.asking import Respondent, ScriptRespondent, TerminalRespondent, WrongAnswer
from ravebot.operations.init.flow import Interview, missing, removed_keys
from ravebot.operations.init.given import CommandMistake, answers, begin, list_missing
from ravebot.operations.init.questions import BY_NAME, named
from ravebot.operations.init.steps import InstallationSteps, Wishes, at_the_end
from ravebot.terminal import FAILED, INTERRUPTED, UNUSABLE, clean, output


def hold(options: Mapping[str, object]) -> None:
    """The command. Ends with its exit code."""
    _end_like_ctrl_c()
    try:
        with asyncio.Runner() as runner:
            session = Session(options, runner)
            try:
                session.check() if options["check"] else session.run()
            finally:
                session.close()
    except (CommandMistake, WrongAnswer) as error:
        for line in str(error).splitlines():
            output.complain(clean(line))
        raise typer.Exit(UNUSABLE) from error


def _end_like_ctrl_c() -> None:
    def stop(_number: int, _frame: object) -> None:
        signal.raise_signal(signal.SIGINT)  # which cancels what runs

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def _least_port() -> int:
    """The first port that needs no right of root's: https://www.kernel.org/doc/html/latest/networking/ip-sysctl.html"""
    with suppress(OSError, ValueError):
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text("ascii"))
    return 1024


class Session:
    """What is given, who answers, and what was done so far."""

    def __init__(self, options: Mapping[str, object], runner: asyncio.Runner) -> None:
        logs.set_up("error", ())
        self._options = options
        self._runner = runner
        self._path = Path(str(options["config"])).absolute()
        self._given = {} if options["check"] else answers(options)
        self._inquiry, self._text = begin(self._path)
        self._inquiry.least_port = _least_port() if options["service"] else 0
        self._watched = output.is_watched and not options["check"]
        self._respondent: Respondent = (
            TerminalRespondent(output) if self._watched else ScriptRespondent(output, shows_all=bool(options["check"]))
        )
        self._brief = bool(options["yes"]) or not self._watched
        self._steps: InstallationSteps | None = None

    def check(self) -> None:
        """Only the tests, with what is configured."""
        if not self._text:
            raise CommandMistake(f"there is no configuration {self._path} to check: run `ravebot init` without --check")
        loaded = load(self._path)
        if (interview := self._interview()).wrong:
            output.complain(f"{interview.wrong} of the answers in {self._path} are wrong.")
            raise typer.Exit(FAILED)
        self._end(loaded)

    def run(self) -> None:
        try:
            self._planned("").check_early()
            interview = self._interview()
            if not self._confirmed(interview):
                self._respondent.say("Nothing was written.", "yellow")
                raise typer.Exit(FAILED)
            assert self._steps is not None
            loaded = self._runner.run(self._steps.run())
            self._tell(loaded)
            self._end(loaded)
        except (KeyboardInterrupt, asyncio.CancelledError):
            self._stopped("Interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (RavebotError, OSError) as error:
            if self._steps is None or not self._steps.done:
                raise
            self._stopped(str(error))
            raise typer.Exit(FAILED) from error

    def close(self) -> None:
        """End a trial login that ravebot does not keep."""
        with suppress(RavebotError):
            self._runner.run((self._steps or self._planned("")).end_login())

    def _interview(self) -> Interview:
        if not self._watched and (lacking := missing(self._inquiry, self._given)):
            raise CommandMistake(list_missing(lacking))
        interview = Interview(self._inquiry, self._given, self._respondent, self._runner.run, brief=self._brief)
        interview.only_tests = bool(self._options["check"])
        interview.hold()
        return interview

    def _planned(self, text: str) -> InstallationSteps:
        wanted = self._options
        folder = None if wanted["no_link"] else Path(str(wanted["link_folder"]))
        wishes = Wishes(
            service=bool(wanted["service"]),
            start=not wanted["no_start"],
            webhooks=not wanted["no_webhooks"],
            ssl_verification=False if wanted["no_ssl_verification"] else None,
            build_image=not wanted["no_build_image"],
            link_folder=folder,
        )
        return InstallationSteps(self._inquiry, text, wishes, lambda line: self._respondent.say(f"  {line}", "dim"))

    def _confirmed(self, interview: Interview) -> bool:
        """Show what will be written until it is confirmed; the name of an answer lets it be given again."""
        while True:
            text = self._draft()
            _, warnings = judge(self._path, text)
            self._steps = self._planned(text)
            self._steps.check()
            if not self._watched:
                return True
            self._show(text, warnings, interview)
            if self._options["yes"]:
                return True
            word = self._respondent.decide("Do all this? [yes/no, or the name of an answer to change]").lower()
            if word in ("y", "yes"):
                return True
            if word in ("n", "no"):
                return False
            if (question := named(word)) is not None:
                interview.again(question.name)
            else:
                self._respondent.say(f"There is no answer {word!r}: " + ", ".join(BY_NAME), "yellow")

    def _draft(self) -> str:
        values = self._inquiry.values()
        if not self._text:
            return draft.fresh(values)
        kept = draft.without_unchanged_defaults(values, self._inquiry.existing)
        return draft.edit(self._text, kept, removed_keys(self._inquiry))

    def _show(self, text: str, warnings: tuple[str, ...], interview: Interview) -> None:
        say, inquiry = self._respondent.say, self._inquiry
        say("")
        if interview.chosen:
            say("Found or chosen; to change one, type its name below, or give the option:", "bold")
            for name in interview.chosen:
                if shown := inquiry.answers.get(name):
                    say(f"  {name:<18} {shown}", "cyan")
            say("")
        if not self._text:
            say(f"{self._path} will be:", "bold")
            for line in text.splitlines():
                say(f"  {line}", "dim" if line.lstrip().startswith("#") else "")
        elif lines := draft.difference(self._text, text, self._path):
            say(f"{self._path} will be changed:", "bold")
            for line in lines:
                say(f"  {line}", {"+": "green", "-": "red"}.get(line[:1], "dim"))
        else:
            say(f"{self._path} stays as it is.", "bold")
        for warning in warnings:
            say(f"  warning: {warning}", "yellow")
        say("")
        assert self._steps is not None
        say("And then:", "bold")
        for line in self._steps.plan():
            say(f"  - {line}")
        say("")

    def _tell(self, loaded: LoadedConfig) -> None:
        """The proxy's block and the ports; on stdout, to be copied."""
        config = loaded.config
        if self._proxy_is_new(loaded):
            for name, block in (("Caddy", proxy.caddy(config)), ("nginx", proxy.nginx(config))):
                self._respondent.say("")
                self._respondent.say(f"A TLS proxy in front of ravebot, with {name}:", "bold")
                output.raw(block.rstrip("\n"))
        if self._alerts_are_new(loaded):
            self._respondent.say("")
            self._respondent.say("In Alertmanager's alertmanager.yml, and a route that leads there:", "bold")
            output.raw(alerting.receiver(config).rstrip("\n"))
            self._respondent.say("")
            self._respondent.say("And its copy of the token, as root:", "bold")
            output.raw(f"  {alerting.copying(config)}")
        self._respondent.say("")
        self._respondent.say("Ports to open:", "bold")
        for line in proxy.ports(config):
            output.raw(f"  {line}")
        self._respondent.say("")

    def _end(self, loaded: LoadedConfig) -> NoReturn:
        """The doctor, and what to do next."""
        findings = self._runner.run(at_the_end(loaded))
        show(output, [one for one in findings if one.verdict is not Verdict.OK] or findings, of=findings)
        steps = self._steps
        for line in steps.failed if steps else ():
            output.complain(f"failed: {clean(line)}")
        bad = (steps is not None and steps.failed) or any(one.verdict is Verdict.FAILED for one in findings)
        if steps is None:
            raise typer.Exit(FAILED if bad else 0)
        if steps.failed:
            output.complain(
                "The rest is done. Mend what failed and run the same command again: it continues.", "yellow"
            )
        elif bad:
            output.complain(f"Next: mend what failed above, then start ravebot: {steps.start}", "yellow")
        elif steps.start_service():
            proxy_too = "put a block from above into your proxy, and " if self._proxy_is_new(loaded) else ""
            output.say(f"ravebot runs. Next: {proxy_too}open a merge request.", "green")
        else:
            output.say(f"Next: start ravebot with `{steps.start}` and open a merge request.", "green")
        raise typer.Exit(FAILED if bad else 0)

    def _proxy_is_new(self, loaded: LoadedConfig) -> bool:
        return proxy.needed(loaded.config) and self._did_something()

    def _alerts_are_new(self, loaded: LoadedConfig) -> bool:
        return loaded.config.monitoring.alertmanager_token_file is not None and self._did_something()

    def _did_something(self) -> bool:
        worked = self._steps is not None and self._steps.done  # what an interrupted run did not come to say
        return bool(worked or not self._inquiry.existing)

    def _stopped(self, why: str) -> None:
        if self._steps is None or not self._steps.done:
            output.complain(f"\n{clean(why)}: nothing was written.", "yellow")
            return
        done = "; ".join(self._steps.done)
        output.complain(
            f"\n{clean(why)}. Done so far: {clean(done)}. Run the same command again: it continues.", "yellow"
        )
