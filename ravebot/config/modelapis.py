"""Which APIs of models ravebot can check and count, by the path of a request."""

from __future__ import annotations

from enum import StrEnum


class ModelApi(StrEnum):
    """An API whose requests ravebot checks, and in whose answers it reads what was used; by how its path ends."""

    MESSAGES = "/messages"  # https://docs.claude.com/en/api/messages
    COUNT_TOKENS = "/messages/count_tokens"  # costs nothing
    CHAT = "/chat/completions"  # https://platform.openai.com/docs/api-reference/chat
    RESPONSES = "/responses"  # https://platform.openai.com/docs/api-reference/responses
    GOOGLE = "/models"  # below it, MODEL:METHOD: https://ai.google.dev/api/generate-content

    @property
    def is_anthropic(self) -> bool:
        return self in (ModelApi.MESSAGES, ModelApi.COUNT_TOKENS)


def address_of(path: str) -> str:
    """Where requests to a configured path go, as a person writes it."""
    return f"{path}/MODEL:generateContent" if api_of(path) is ModelApi.GOOGLE else path


def api_of(path: str) -> ModelApi | None:
    """The API that is at a path such as /v1/messages; None if ravebot knows none."""
    return next((api for api in ModelApi if path.endswith(api.value)), None)
