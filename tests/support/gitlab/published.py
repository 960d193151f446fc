"""Compares requests with the OpenAPI description that GitLab publishes (doc/api/openapi/openapi_v2.yaml).

The file is not part of the repository: the environment variable GITLAB_OPENAPI names it. When it is there, the stand-in
compares at its end what it granted, in every test.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
import yaml

from tests.support.gitlab.faults import Request

VARIABLE = "GITLAB_OPENAPI"
_FORMAT = ".tar.gz"
"""https://docs.gitlab.com/api/repositories/#get-file-archive: the description leaves the format out."""
_PAGES = frozenset(("page", "per_page"))
"""https://docs.gitlab.com/api/rest/#pagination: of some lists that have pages the file does not say so."""
_NEWER = frozenset(("signing_token",))
"""https://docs.gitlab.com/api/project_webhooks/: newer than the file; a GitLab that does not know it ignores it."""
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}


@cache
def published() -> dict[str, Any]:
    """The description; without it the test is skipped."""
    path = os.environ.get(VARIABLE)
    if not path:
        pytest.skip(f"GitLab's OpenAPI description is not here: {VARIABLE} names it")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, Any] = yaml.load(Path(path).read_bytes(), Loader=loader)
    return found


def misfits(requests: Iterable[Request]) -> list[str]:
    """What of the requests GitLab does not describe so. Paths that it does not describe at all are left out."""
    return [f"{request.method} {request.path}: {why}" for request in requests for why in _misfits(request)]


def described(request: Request) -> dict[str, Any] | None:
    """The operation; None where GitLab describes none."""
    path = request.path.removesuffix(_FORMAT)
    fitting = [
        operations[request.method.lower()]
        for pattern, operations in _paths()
        if pattern.fullmatch(path) and request.method.lower() in operations
    ]
    return fitting[0] if fitting else None


def fields_of(request: Request) -> set[str]:
    """The fields of the thing, or of each thing, that GitLab answers with."""
    responses = (described(request) or {"responses": {}})["responses"]
    schema: dict[str, Any]
    schema = next((one["schema"] for code, one in responses.items() if code.startswith("2") and "schema" in one), {})
    name = (schema.get("$ref") or schema.get("items", {}).get("$ref", "")).rpartition("/")[2]
    return set(published()["definitions"][name]["properties"]) if name else set()


@cache
def _paths() -> tuple[tuple[re.Pattern[str], dict[str, Any]], ...]:
    """Those with the most fixed parts first, as `/environments/review_apps` is no environment's id."""
    paths = sorted(published()["paths"].items(), key=lambda item: item[0].count("{"))
    return tuple(
        (re.compile(re.sub(r"\\{[^}]*\\}|\\\*\w+", "[^/]+", re.escape(path))), operations) for path, operations in paths
    )


def _misfits(request: Request) -> Iterator[str]:
    operation = described(request)
    if operation is None:
        return
    parameters = operation.get("parameters", [])
    allowed = {one["name"]: one for one in parameters if one["in"] == "query"}
    for given, value in parse_qsl(request.query):
        name = given.removesuffix("[]")
        if name in _PAGES and request.method == "GET":
            continue
        if name not in allowed:
            yield f"takes no query {name}"
        elif value not in map(str, allowed[name].get("enum", [value])):
            yield f"the query {name} can't be {value}"
    schema = next((one["schema"] for one in parameters if one["in"] == "body"), None)
    if request.body in (b"", b"{}"):
        return
    if schema is None:
        yield "takes no body"
        return
    described_body = published()["definitions"][schema["$ref"].rpartition("/")[2]]
    yield from _misfits_of(json.loads(request.body), described_body)


def _misfits_of(body: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    properties = schema.get("properties", {})
    yield from (f"needs {name}" for name in schema.get("required", []) if name not in body)
    for name, value in body.items():
        if name not in properties:
            if name not in _NEWER:
                yield f"takes no {name}"
            continue
        if not isinstance(value, _TYPES.get(properties[name].get("type", ""), (object,))):
            yield f"{name} should be {properties[name]['type']}"
        elif value not in properties[name].get("enum", [value]):
            yield f"{name} can't be {value}"
