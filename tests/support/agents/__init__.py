"""Agents and a model for tests, each run as a process of its own: they share no code with ravebot.

`plain` and `sdk` are ACP agents whose behaviour is what the prompt says; `model` plays an OpenAI-compatible model on
loopback; `opencode` and `acplint` install programs of others at pinned versions into `.cache/`.
"""
