"""What is said of a project's webhook: its state, with cause and fix. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ravebot.gitlab.fields import Json
from ravebot.gitlab.hooks import (
    HookComparison,
    HookCondition,
    HookSecrets,
    HookTarget,
    takes_signing_tokens,
    without_query,
)

INSTALL = "`ravebot gitlab hooks install`"
_OUTBOUND = (
    "if it is a private address, an administrator of GitLab allows it under Admin, Settings, Network, Outbound requests"
)


@dataclass(frozen=True)
class HookState:
    """How one project's webhook is, in a sentence; `fix` says what to do, and is empty if nothing is wrong."""

    project: str
    condition: HookCondition
    detail: str
    fix: str = ""
    changed: bool = False

    @property
    def ok(self) -> bool:
        return self.condition in (HookCondition.RIGHT, HookCondition.REMOVED)

    @property
    def sentence(self) -> str:
        """Detail and fix in one."""
        return f"{self.detail}: {self.fix}" if self.fix else self.detail


def seen(path: str, found: HookComparison, wanted: HookTarget, *, refused: bool = False) -> HookState:
    """What `list` and the doctor tell."""
    condition, keep = found.condition, found.keep
    if keep is None:
        detail = f"no webhook to {wanted.address}"
        if condition is HookCondition.FOREIGN:
            detail += f", only one to {found.foreign[0]}, which looks like another ravebot's"
        return HookState(path, condition, detail, INSTALL)
    if condition is HookCondition.DISABLED:
        until = keep.get("disabled_until")
        detail = f"disabled by GitLab after failures{f' until {until}' if until else ''}"
        fix = f"make {wanted.address} reachable for GitLab (its page shows recent events), then run {INSTALL}"
        return HookState(path, condition, detail, fix)
    if found.missing_events:
        return HookState(path, condition, f"not enabled for {' and '.join(found.missing_events)}", INSTALL)
    if found.without_secret:
        return HookState(path, condition, "it carries no secret that ravebot knows", INSTALL)
    if refused:
        detail = "ravebot refused its latest delivery (401), so its secret is another one"
        return HookState(path, HookCondition.WRONG, detail, f"{INSTALL} sets the same secret")
    if condition is HookCondition.DOUBLED:
        return HookState(path, condition, f"{len(found.surplus) + 1} webhooks to {wanted.address}", INSTALL)
    return HookState(path, condition, _right(found))


def _right(found: HookComparison) -> str:
    url = str(found.keep.get("url", "")) if found.keep is not None else ""
    said = [f"sends to {without_query(url)}"]
    if found.unverified:
        said.append("GitLab doesn't check the certificate")
    if found.other_events:
        said.append(f"also sends {', '.join(found.other_events)}, which ravebot ignores")
    return "; ".join(said)


def installed(
    path: str, before: HookComparison, after: HookComparison, wanted: HookTarget, ours: HookSecrets, answer: Json
) -> HookState:
    """What `install` tells once it has set what it could."""
    state = seen(path, replace(after, condition=_single(after.condition), surplus=()), wanted)
    if not state.ok:
        if state.condition is HookCondition.DISABLED:
            fix = (
                "send a test on GitLab's page of the webhook, which enables it; it has headers that ravebot can't copy"
            )
            return replace(state, fix=fix, changed=True)
        return replace(
            state, fix="look at it in GitLab, Settings, Webhooks: GitLab did not take all of it", changed=True
        )
    if ours.signing_token is not None and not takes_signing_tokens(answer) and ours.secret_token is None:
        detail = "GitLab's answer doesn't tell that it took the signing token: it may be too old for it"
        fix = "set it on GitLab's page of the webhook, or use secret_token_file"
        return HookState(path, HookCondition.WRONG, detail, fix, changed=True)
    did = {
        HookCondition.MISSING: "made",
        HookCondition.FOREIGN: "made; another one to {} was left alone",
        HookCondition.DISABLED: "made anew, because GitLab had disabled the old one",
        HookCondition.DOUBLED: "one is kept, and the others were removed",
        HookCondition.WRONG: "corrected",
    }.get(before.condition, "was right, and its secret was set again")
    foreign = before.foreign[0] if before.foreign else ""
    return replace(state, detail=f"{did.format(foreign)}; {state.detail}", changed=True)


def _single(condition: HookCondition) -> HookCondition:
    """What it is once the others have been removed."""
    return HookCondition.RIGHT if condition is HookCondition.DOUBLED else condition


def removed(path: str, count: int, found: HookComparison, wanted: HookTarget) -> HookState:
    detail = f"removed {count}" if count > 1 else "removed" if count else f"there was none to {wanted.address}"
    if found.foreign:
        detail += f"; one to {found.foreign[0]} was left alone"
    return HookState(path, HookCondition.REMOVED, detail, changed=bool(count))


def tested(state: HookState, problem: str | None) -> HookState:
    """After GitLab was asked for a test event, which it sends at once; `problem` is what it said against it."""
    if problem is None:
        return replace(state, detail=f"{state.detail}; a test event reached ravebot")
    if "Ensure the project has" in problem:  # as GitLab's TestHooks services say
        return replace(state, detail=f"{state.detail}; not tested, because the project has no merge request yet")
    fix = "start ravebot (restart it after a change of its secret), and see that GitLab's host reaches http.public_url"
    return replace(state, condition=HookCondition.FAILED, detail=f"the test event failed: {problem}", fix=fix)


def untestable(state: HookState) -> HookState:
    return replace(state, detail=f"{state.detail}; not tested, because only GitLab from 16.11 on can be asked for it")


def not_taken(path: str, said: str) -> HookState:
    fix = f"check http.public_url; {_OUTBOUND}" if _is_about_url(said) else "see GitLab's words"
    return HookState(path, HookCondition.FAILED, said, fix)


def _is_about_url(said: str) -> bool:
    return "url" in said.lower() or "local network" in said.lower() or "blocked" in said.lower()


def not_visible(path: str) -> HookState:
    detail = "it does not exist, or the bot's user is no member of it"
    return HookState(path, HookCondition.FAILED, detail, "add the bot's user as Maintainer, or change gitlab.projects")


def forbidden(path: str, role: str, said: str, *, below: bool) -> HookState:
    if not below:
        fix = "check that the token has the scope api, and that the project is not archived"
        return HookState(path, HookCondition.FAILED, said, fix)
    detail = f"the bot's token has {f'the role {role}' if role else 'no role'} in {path}, below Maintainer"
    fix = "a Maintainer adds the webhook on GitLab's page, or gives the bot that role"
    return HookState(path, HookCondition.FAILED, detail, fix)


def unanswered(path: str, said: str) -> HookState:
    return HookState(path, HookCondition.FAILED, said, "try again")


def not_configured(path: str) -> HookState:
    return HookState(path, HookCondition.FAILED, "it is not in gitlab.projects", "add it there first")


def nothing_matches(pattern: str) -> HookState:
    detail = "the bot's user is a member of no project that matches"
    return HookState(pattern, HookCondition.FAILED, detail, "add it to one as Maintainer, or change gitlab.projects")
