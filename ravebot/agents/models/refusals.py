"""What the gateway answers instead of a model's answer, in a form that the clients of both providers understand."""

from __future__ import annotations

import json

MOST_OUTPUT = 10_000_000
"""More tokens than any model gives in one answer."""
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


class ModelRefusal(Exception):
    """A request that is not passed on. The text names cause and mend, and holds neither prompts nor keys."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def forbidden(text: str) -> ModelRefusal:
    """403: clients do not try it again."""
    return ModelRefusal(403, text)


def needs_server_tools(what: str) -> ModelRefusal:
    return forbidden(
        f"the request has {what}, which is not passed on: it may have the provider fetch, look up or run something."
        " Switch it off in the agent, or have an admin of ravebot set models[].server_tools: allow."
    )


def whole(key: str, value: object, least: int, most: int) -> int:
    """A whole number of a request. Raises ModelRefusal."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ModelRefusal(400, f"`{key}` must be a whole number from {least} to {most:,}.")
    return value


def shown(value: object) -> str:
    """A name from a request, as an error shows it."""
    return repr(str(value)[:60])


def error_body(status: int, text: str) -> bytes:
    """An error as Anthropic and OpenAI both write it: `type` is of the one, `code` and `param` are of the other.

    https://docs.claude.com/en/api/errors, https://platform.openai.com/docs/guides/error-codes
    """
    error = {"type": _KINDS.get(status, "api_error"), "message": f"ravebot: {text}", "code": None, "param": None}
    return json.dumps({"type": "error", "error": error}, ensure_ascii=False).encode("utf-8", "replace")
