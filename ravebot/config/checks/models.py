"""Checks of the services of models, and of who uses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ravebot.config.checks.remarks import Remark
from ravebot.config.model import Config
from ravebot.config.modelapis import ModelApi, api_of
from ravebot.config.tree import KeyPath


def models(config: Config) -> Iterator[Remark]:
    """The services of models, and who uses them."""
    names = Counter(model.name for model in config.models)
    for name, count in names.items():
        if count > 1:
            yield Remark(("models",), f"{count} models are called {name}: give each a name of its own")
    for place, model in enumerate(config.models):
        for index, path in enumerate(model.paths):
            if api_of(path) is None:
                known = ", ".join(f"…{api}" for api in ModelApi)
                message = f"ravebot can't read what is used there; paths that it can count end in one of {known}"
                yield Remark(("models", place, "paths", index), message)
        if model.key_file is None and "header" in model.model_fields_set:
            yield Remark(("models", place, "header"), "without key_file there is no key to send: remove it, or add one")
    for place, agent in enumerate(config.agents):
        for index, name in enumerate(agent.models):
            if name not in names:
                where: KeyPath = ("agents", place, "models", index)
                yield Remark(
                    where, f"no model is called {name}: write the name of one in `models`", (where, ("models",))
                )


def useless_models(config: Config) -> Iterator[Remark]:
    used = {name for agent in config.agents for name in agent.models}
    for place, model in enumerate(config.models):
        if model.name not in used:
            yield Remark(("models", place), f"no agent may use {model.name}: add it to agents[].models of one")
