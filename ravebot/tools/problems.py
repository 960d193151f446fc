"""Why a call of a tool was not carried out: a kind, which has its HTTP status, and a sentence with what to do."""

from __future__ import annotations

from enum import Enum

from ravebot.errors import (
    Forbidden,
    GuestError,
    NotFound,
    ProviderError,
    RavebotError,
    Refused,
    StoreError,
    Unavailable,
)


class ProblemKind(Enum):
    """The kinds, each with the HTTP status and title that the API gives it (RFC 9457)."""

    MALFORMED = (400, "The request can't be read")
    NO_TOKEN = (401, "No valid token")
    FORBIDDEN = (403, "Not allowed")
    NOT_FOUND = (404, "Not found")
    METHOD = (405, "Not with this method")
    SLOW = (408, "The request came too slowly")
    REFUSED = (409, "Not possible now")
    TOO_LARGE = (413, "The request is too large")
    MEDIA_TYPE = (415, "Not JSON")
    WRONG_HOST = (421, "Not this host")
    INVALID = (422, "The request does not fit")
    TOO_OFTEN = (429, "Too many requests")
    BUG = (500, "ravebot failed at this")
    UNAVAILABLE = (503, "Not available now")

    @property
    def status(self) -> int:
        return self.value[0]

    @property
    def title(self) -> str:
        return self.value[1]


class ToolProblem(RavebotError):
    """A call was not carried out."""

    def __init__(self, kind: ProblemKind, detail: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds

    @property
    def body(self) -> dict[str, object]:
        """As RFC 9457 has it."""
        return {"type": "about:blank", "title": self.kind.title, "status": self.kind.status, "detail": self.detail}


def mistake() -> ToolProblem:
    """What the caller is told of a mistake in ravebot, of which the log has the details."""
    return ToolProblem(ProblemKind.BUG, "This is a mistake in ravebot: its log has more. Tell an admin of ravebot.")


def problem_of(error: RavebotError) -> ToolProblem:
    """An error of a part of ravebot, as the caller is told of it."""
    match error:
        case ToolProblem():
            return error
        case NotFound():
            return ToolProblem(ProblemKind.NOT_FOUND, sentence(str(error)))
        case Refused():
            return ToolProblem(ProblemKind.REFUSED, sentence(str(error)))
        case Forbidden():
            why = f"GitLab refused it to ravebot: {error}. An admin of ravebot can mend that."
            return ToolProblem(ProblemKind.UNAVAILABLE, why)
        case Unavailable():
            after = error.retry_after_seconds
            return ToolProblem(ProblemKind.UNAVAILABLE, f"{sentence(str(error))} Try again in a while.", after or 5)
        case StoreError() | ProviderError() | GuestError():
            return ToolProblem(ProblemKind.UNAVAILABLE, f"{sentence(str(error))} Try again in a while.", 5)
        case _:
            return ToolProblem(ProblemKind.UNAVAILABLE, sentence(str(error)))


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"
