"""Asks the questions in their order: what is given is tested at once, and what is wrong is asked again."""

from __future__ import annotations

import secrets
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from ravebot.config.tree import dotted
from ravebot.errors import RavebotError, Unavailable
from ravebot.operations.doctor.finding import Finding, Verdict, failed, warning
from ravebot.operations.doctor.matrix import log_out
from ravebot.operations.init.asking import Respondent
from ravebot.operations.init.inquiry import Asked, Form, Inquiry, Question, lookup
from ravebot.operations.init.questions import BY_NAME, QUESTIONS

T = TypeVar("T")
_LONGEST = 4096


class CoroutineRunner(Protocol):
    """Runs a coroutine to its end; prompts block, so that they are outside of the event loop."""

    def __call__(self, coro: Coroutine[Any, Any, T], /) -> T: ...


def missing(inquiry: Inquiry, given: Mapping[str, str]) -> list[Question]:
    """The questions that a script must answer, and did not."""
    lacking = [
        question
        for question in QUESTIONS
        if question.needed
        and question.name not in given
        and (not usable(inquiry, given, question.name) if question.secret else not inquiry.old(question))
    ]
    account = ("matrix_password", "matrix_token")
    if not any(name in given or usable(inquiry, given, name) for name in account):
        lacking.append(BY_NAME["matrix_password"])
    return sorted(lacking, key=QUESTIONS.index)


_SERVERS = {
    "matrix_password": ("matrix_user", "matrix_homeserver"),
    "matrix_token": ("matrix_user", "matrix_homeserver"),
    "gitlab_token": ("gitlab_url",),
}


def usable(inquiry: Inquiry, answers: Mapping[str, str], name: str) -> bool:
    """Whether there is a secret already, for the same server and account: it is never sent to another one."""
    same = all(
        inquiry.old(BY_NAME[about]) in (None, answers.get(about, inquiry.old(BY_NAME[about])))
        for about in _SERVERS.get(name, ())
    )
    return name in inquiry.kept_secrets and same


class Interview:
    """One round of questions. `given`: the answers of the command line, secrets included."""

    def __init__(
        self, inquiry: Inquiry, given: Mapping[str, str], respondent: Respondent, run: CoroutineRunner, *, brief: bool
    ) -> None:
        self._inquiry = inquiry
        self._given = given
        self._respondent = respondent
        self._run = run
        self._brief = brief  # takes what is proposed, and asks only for the rest
        self.chosen: list[str] = []
        """The questions that nobody was asked."""
        self.only_tests = False
        """Take wrong answers, too: only what the tests find matters."""
        self.wrong = 0

    def hold(self) -> None:
        """Ask all. Raises WrongAnswer when there is nobody to ask again."""
        for question in QUESTIONS:
            self._hear(question)

    def _hear(self, question: Question) -> None:
        if question.secret:
            self._secret(question)
        else:
            self._plain(question)

    def again(self, name: str) -> None:
        """Ask for one answer again; of another server or account, for its secret and what was found there, too."""
        question, answers, base = BY_NAME[name], self._inquiry.answers, self._inquiry.homeserver
        before = answers.get(name)
        if name == "matrix_token":
            self._forget_account(base)
        if question.secret:
            self._ask_secret(question, self._kept_place(question))
            return
        self._ask(question, before)
        if answers.get(name) == before:
            return
        if name in _SERVERS["matrix_password"]:
            self._forget_account(base)
            if name == "matrix_user" and str(before).partition(":")[2] != answers[name].partition(":")[2]:
                self._ask(BY_NAME["matrix_homeserver"], answers["matrix_homeserver"])
            self._ask_secret(BY_NAME["matrix_password"], self._kept_place(BY_NAME["matrix_password"]))
            for room in ("room", "alerts_room"):
                if room in answers:
                    self._confirm(room)
        elif name in _SERVERS["gitlab_token"]:
            self._inquiry.secrets.pop("gitlab_token", None)
            self._ask_secret(BY_NAME["gitlab_token"], self._kept_place(BY_NAME["gitlab_token"]))
            self._confirm("projects")
        elif question.asked is Asked.OFFERED:
            for follower in (one for one in QUESTIONS if one.asked is Asked.FOLLOWS):
                answers.pop(follower.name, None)
                self._inquiry.secrets.pop(follower.name, None)
                self._hear(follower)

    def _confirm(self, name: str) -> None:
        """Test an answer that was right elsewhere."""
        if not self._take(BY_NAME[name], self._inquiry.answers[name]):
            self._ask(BY_NAME[name], None)

    def _forget_account(self, base: str) -> None:
        """End the trial login at its own server, and forget what it was made with."""
        for name in ("matrix_password", "matrix_token"):
            self._inquiry.secrets.pop(name, None)
        if self._inquiry.login is not None:
            self._run(log_out(base, self._inquiry.login.token))
            self._inquiry.login = None

    def _plain(self, question: Question) -> None:
        given = self._given.get(question.name)
        if given is not None:
            if not self._take(question, given):
                self._ask(question, None)
            return
        found = self._inquiry.old(question)
        if found is None and question.propose is not None:
            found = self._proposed(question)
        elif found is None and not question.needed:
            found = ""  # most installations do without
        asked = question.asked in (Asked.ALWAYS, Asked.OFFERED) and not (self._brief and found)
        left_out = not found and (self._brief if question.asked is Asked.OFFERED else question.asked is Asked.FOLLOWS)
        if left_out:
            return
        if not asked and found is not None:
            self.chosen.append(question.name)
            if found == "" or self._take(question, found, quiet=True):
                return
            found = None
        if not asked and question.asked is Asked.NEVER and found is None:
            self._ask(question, None)  # nothing free was found
            return
        if question.asked is Asked.IF_UNKNOWN and found is None and question.name == "matrix_homeserver":
            self._respondent.show([self._unpublished()])
        self._ask(question, found)

    def _unpublished(self) -> Finding:
        server = self._inquiry.answers["matrix_user"].partition(":")[2]
        detail = f"no homeserver is found at https://{server}, nor does its /.well-known/matrix/client name one"
        return warning("matrix", detail, "give its address; if the Matrix id is misspelt, press Ctrl-C and begin again")

    def _proposed(self, question: Question) -> str | None:
        assert question.propose is not None
        try:
            return self._run(question.propose(self._inquiry))
        except (Unavailable, OSError, ValueError):  # such as this host's name, if no name can be like that
            return None

    def _ask(self, question: Question, proposal: str | None) -> None:
        while True:
            text = self._respondent.ask(question, proposal)
            if not text and question.asked is Asked.OFFERED:
                self._inquiry.answers.pop(question.name, None)
                return
            if text and self._take(question, text):
                return
            if not text:
                self._respondent.show([failed(question.option, "no answer", "type one, or press Ctrl-C to leave")])

    def _take(self, question: Question, text: str, *, quiet: bool = False) -> bool:
        """Test the answer and keep it if it is right."""
        text = text.strip()
        findings = self._tested(question, text)
        right = all(finding.verdict is not Verdict.FAILED for finding in findings)
        self._respondent.show([one for one in findings if not quiet or one.verdict is not Verdict.OK])
        if self.only_tests and not right:
            self.wrong, right = self.wrong + 1, True
        if right:
            normal = question.form is Form.TEXT and text.startswith(("http://", "https://"))
            self._inquiry.answers[question.name] = text.rstrip("/") if normal else text
        return right

    def _tested(self, question: Question, text: str) -> Sequence[Finding]:
        name = dotted(question.key)
        if len(text) > _LONGEST or not text.isprintable():
            return [failed(name, "too long, or with characters that can't be printed", "type it again")]
        if not question.secret and (wrong := self._inquiry.complaints(question.name, text)):
            return [failed(name, message) for message in wrong]
        if question.test is None:
            return []
        try:
            return self._run(question.test(self._inquiry, text))
        except Unavailable as error:
            return [failed(name, f"the connection was lost: {error}", "check the network, and try again")]
        except (RavebotError, OSError, ValueError) as error:
            return [failed(name, f"can't be tested: {error}", "correct that, and try again")]

    def _secret(self, question: Question) -> None:
        inquiry, name = self._inquiry, question.name
        if name == "matrix_token" and {"matrix_password", "matrix_token"} & inquiry.secrets.keys():
            return
        other = self._given.get("matrix_token") or (
            "matrix_password" not in self._given
            and not self._usable("matrix_password")
            and self._usable("matrix_token")
        )
        if name == "matrix_password" and other:
            return
        if question.asked is Asked.FOLLOWS and "alerts_room" not in inquiry.answers and name not in self._given:
            return
        given = self._given.get(name) or (
            inquiry.kept_secrets[name] if self._usable(name) and self._silent(question) else None
        )
        if given:
            if not self._take_secret(question, given):
                self._ask_secret(question, self._kept_place(question))
        elif question.asked is Asked.FOLLOWS or (
            name == "webhook_secret" and "webhook_signing_token" not in inquiry.kept_secrets
        ):
            inquiry.secrets[name] = secrets.token_hex(32)
        elif question.asked is Asked.ALWAYS:
            self._ask_secret(question, self._kept_place(question))

    def _silent(self, question: Question) -> bool:
        return self._brief or question.asked is not Asked.ALWAYS

    def _kept_place(self, question: Question) -> str | None:
        return str(self._inquiry.secret_file(question)) if self._usable(question.name) else None

    def _usable(self, name: str) -> bool:
        return usable(self._inquiry, self._inquiry.answers, name)

    def _ask_secret(self, question: Question, place: str | None) -> None:
        while True:
            text = self._respondent.ask(question, place) or (
                self._inquiry.kept_secrets.get(question.name, "") if place else ""
            )
            if text and self._take_secret(question, text):
                return
            if not text and question.name == "matrix_password":
                self._ask_secret(BY_NAME["matrix_token"], self._kept_place(BY_NAME["matrix_token"]))
                return
            if not text:
                self._respondent.show([failed(question.option, "no answer", "type one, or press Ctrl-C to leave")])

    def _take_secret(self, question: Question, text: str) -> bool:
        findings = self._tested(question, text)
        right = all(finding.verdict is not Verdict.FAILED for finding in findings)
        if right and question.name == "matrix_password" and self._inquiry.login is None:
            right = False
        self._respondent.show(findings)
        if self.only_tests and not right:
            self.wrong, right = self.wrong + 1, True
        if right:
            self._inquiry.secrets[question.name] = text
            if question.name == "matrix_password":
                self._inquiry.secrets.pop("matrix_token", None)
        return right


def removed_keys(inquiry: Inquiry) -> tuple[tuple[str, ...], ...]:
    """Keys of the existing configuration that exclude what was answered."""
    keys = {"matrix_password": BY_NAME["matrix_token"].key, "matrix_token": BY_NAME["matrix_password"].key}
    there = [key for name, key in keys.items() if name in inquiry.secrets and lookup(inquiry.existing, key) is not None]
    return tuple(tuple(map(str, key)) for key in there)
