"""The table of tools: one row each, from which the API, its description and MCP follow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ravebot.store.api_tokens import Scope
from ravebot.tools import inbox, messages, runs, sandboxes, shapes
from ravebot.tools.callers.contract import Caller, CallerKind
from ravebot.tools.steps import PreparedAct
from ravebot.tools.workbench import Workbench

Look = Callable[[Workbench, Caller, Any], Awaitable[BaseModel]]
Prepare = Callable[[Workbench, Caller, Any], Awaitable[PreparedAct | BaseModel]]
"""Looks up what an act needs; its step runs in one transaction. A result: there is nothing to do."""


@dataclass(frozen=True)
class Tool:
    """One row. `does`: one plain sentence. `scope`: what the token must have; None: every token may.

    `path` is below /api/v1; what stands in braces there is taken from the path, the rest of what it takes from the
    query (GET) or the body. `offered_to`: kinds of callers. `recorded`: each act is an event.
    """

    name: str
    does: str
    scope: Scope | None
    method: str
    path: str
    takes: type[BaseModel]
    gives: type[BaseModel]
    look: Look | None = None
    act: Prepare | None = None
    offered_to: frozenset[CallerKind] = frozenset(CallerKind)
    ends_something: bool = False
    recorded: bool = True

    @property
    def acts(self) -> bool:
        return self.act is not None

    @property
    def waits(self) -> bool:
        """Whether it waits for something new, as long as the caller asks for."""
        return "wait" in self.takes.model_fields

    def why_not(self, caller: Caller) -> str:
        """Why the caller does not have it, in a sentence; empty: it does."""
        if caller.kind not in self.offered_to:
            return f"{self.name} is not offered {caller.kind.value}."
        lacks = caller.lacks(self.scope) if self.scope else ""
        return f"{self.name} {lacks}" if lacks else ""

    def is_for(self, caller: Caller) -> bool:
        """Whether the caller has it."""
        return not self.why_not(caller)


_TOKENS = frozenset({CallerKind.TOKEN})
_READ, _SANDBOX, _RUN, _MESSAGE, _AGENT = Scope

# fmt: off
TOOLS: tuple[Tool, ...] = (
    Tool("whoami", "Says whose token this is, and what it may.",
         None, "GET", "/whoami", shapes.Nothing, shapes.Me, look=sandboxes.whoami),
    Tool("sandbox_list", "Lists the sandboxes that have not ended, page by page.",
         _READ, "GET", "/sandboxes", shapes.ListSandboxes, shapes.SandboxPage, look=sandboxes.list_live),
    Tool("sandbox_get", "Shows a merge request's newest sandbox: its state, and how to get in.",
         _READ, "GET", "/sandboxes/{ref}", shapes.OneSandbox, shapes.SandboxInfo, look=sandboxes.show),
    Tool("sandbox_start", "Starts a sandbox for a merge request, or gives the one that it has its newest commit.",
         _SANDBOX, "POST", "/sandboxes/{ref}/start", shapes.StartSandbox, shapes.SandboxDone,
         act=sandboxes.start, offered_to=_TOKENS),
    Tool("sandbox_extend", "Keeps a sandbox longer.",
         _SANDBOX, "POST", "/sandboxes/{ref}/extend", shapes.ExtendSandbox, shapes.SandboxDone, act=sandboxes.extend),
    Tool("sandbox_stop", "Ends a sandbox, and deletes everything in it.",
         _SANDBOX, "POST", "/sandboxes/{ref}/stop", shapes.OneSandbox, shapes.SandboxDone,
         act=sandboxes.stop, ends_something=True),
    Tool("run_start", "Runs a command in a sandbox; its output is read with run_read.",
         _RUN, "POST", "/sandboxes/{ref}/runs", shapes.StartRun, shapes.RunInfo, act=runs.start),
    Tool("run_read", "Reads on in what a command printed, and says how it is.",
         _READ, "GET", "/runs/{id}", shapes.ReadRun, shapes.RunHeard, look=runs.read),
    Tool("run_cancel", "Ends a command.",
         _RUN, "POST", "/runs/{id}/cancel", shapes.OneRun, shapes.RunInfo, act=runs.cancel, ends_something=True),
    Tool("logs", "Shows what set-up and tests of a sandbox printed.",
         _READ, "GET", "/sandboxes/{ref}/logs", shapes.OneSandbox, shapes.SandboxLogs, look=sandboxes.logs),
    Tool("changes", "Shows what was changed in a sandbox since its code was copied in.",
         _READ, "GET", "/sandboxes/{ref}/changes", shapes.OneSandbox, shapes.SandboxChanges, look=sandboxes.changes),
    Tool("message_send", "Says something to an agent about a merge request.",
         _MESSAGE, "POST", "/messages", shapes.SendMessage, shapes.MessageSent,
         act=messages.send, offered_to=_TOKENS),
    Tool("message_read", "Reads on in the answer to a message of yours.",
         _READ, "GET", "/messages/{turn}", shapes.ReadMessage, shapes.MessageHeard,
         look=messages.read, offered_to=_TOKENS),
    Tool("inbox_take", "Takes the oldest message for the agent, and waits for one if there is none.",
         _AGENT, "POST", "/inbox/take", shapes.TakeMessage, shapes.InboxMessage, act=inbox.take, offered_to=_TOKENS),
    Tool("inbox_ack", "Keeps a message that was taken, so that it is not given again.",
         _AGENT, "POST", "/inbox/{id}/ack", shapes.OneDelivery, shapes.AnswerState, act=inbox.ack, offered_to=_TOKENS),
    Tool("answer", "Answers a message piece by piece, says what the agent is doing, or that it is done.",
         _AGENT, "POST", "/inbox/{id}/answer", shapes.AnswerMessage, shapes.AnswerState,
         act=inbox.answer, offered_to=_TOKENS, recorded=False),
    Tool("approval_get", "Shows a question that waits for a person's yes or no, or what was answered.",
         _READ, "GET", "/approvals/{id}", shapes.OneApproval, shapes.QuestionInfo, look=messages.approval),
)
# fmt: on

BY_NAME = {tool.name: tool for tool in TOOLS}
