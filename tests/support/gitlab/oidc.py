"""Tokens that jobs get by `id_tokens`, and the keys that show that this GitLab signed them.

https://docs.gitlab.com/ci/secrets/id_token_authentication/ and lib/gitlab/ci/jwt_v2.rb
"""

from __future__ import annotations

import hashlib
import json
import uuid
from functools import cache
from typing import TYPE_CHECKING, Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm

from tests.support.gitlab.faults import Faults
from tests.support.gitlab.pipelines import Job, PipelineActions
from tests.support.gitlab.state import DEVELOPER, GUEST, MAINTAINER, REPORTER, Project

if TYPE_CHECKING:
    from tests.support.gitlab.actions import Actions

_NOT_BEFORE_SECONDS = 5
_ROLES = {0: "", GUEST: "guest", REPORTER: "reporter", DEVELOPER: "developer", MAINTAINER: "maintainer"}


@cache
def _key(number: int) -> RSAPrivateKey:
    """Making one takes long, so all stand-ins of a process share them."""
    return generate_private_key(public_exponent=65537, key_size=2048)


def _kid(key: RSAPrivateKey) -> str:
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).hexdigest()[:43]


class TokenActions(PipelineActions):
    """What `Actions` can do with tokens and keys."""

    url: str
    _signing = 0
    _shown: tuple[int, ...] = (0,)

    def id_token(self, job: Job, aud: str | list[str], **claims: Any) -> str:
        """What the job finds in its environment. `claims` replace those that GitLab writes; None leaves one out."""
        return self.sign({**self.claims(job, aud), **claims})

    def claims(self, job: Job, aud: str | list[str]) -> dict[str, Any]:
        """Of a token that is made now; ids are strings, but for the runner's."""
        with self.state.lock:
            pipeline, now = job.pipeline, int(self.state.now().timestamp())
            fork = pipeline.mr is not None and pipeline.mr.source_project is not pipeline.mr.project
            source = pipeline.mr.source_project if pipeline.mr is not None and fork else pipeline.project
            ref = pipeline.branch or pipeline.ref
            level = self.state.level(pipeline.project, job.user)
            config = f"{self.url.partition('://')[2]}/{pipeline.project.path}//.gitlab-ci.yml@{pipeline.ref}"
            claims: dict[str, Any] = {
                **_of_project("", source),
                "user_id": str(job.user.id),
                "user_login": job.user.username,
                "user_email": f"{job.user.username}@example.com",
                "user_access_level": _ROLES[level],
                **_of_project("job_", pipeline.project),
                "pipeline_id": str(pipeline.id),
                "pipeline_source": pipeline.source,
                "job_id": str(job.id),
                "ref": ref,
                "ref_type": "branch",
                "ref_path": pipeline.ref if pipeline.ref.startswith("refs/") else f"refs/heads/{ref}",
                "ref_protected": str(ref in pipeline.project.protected).lower(),
                "runner_id": 1,
                "runner_environment": "self-hosted",
                "sha": pipeline.sha,
                "project_visibility": "public" if pipeline.project.public else "private",
                "ci_config_ref_uri": config,
                "ci_config_sha": pipeline.sha,
                "jti": str(uuid.uuid4()),
                "iat": now,
                "nbf": now - _NOT_BEFORE_SECONDS,
                "exp": now + int(job.timeout.total_seconds()),
                "iss": self.url,
                "sub": f"project_path:{source.path}:ref_type:branch:ref:{ref}",
                "aud": aud,
            }
            if job.environment:
                claims |= {"environment": job.environment, "environment_protected": "false",
                           "deployment_tier": "development", "environment_action": job.action}  # fmt: skip
            return claims

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        """Any claims, by the key in use."""
        key = _key(self._signing)
        given = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(given, key, algorithm="RS256", headers={"kid": _kid(key), **header})

    def sign_bytes(self, payload: bytes) -> str:
        """Anything, by the key in use."""
        key = _key(self._signing)
        return jwt.api_jws.encode(payload, key, algorithm="RS256", headers={"kid": _kid(key)})

    def public_key(self) -> bytes:
        """The key in use as everyone can have it, in PEM."""
        return _key(self._signing).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def kid(self) -> str:
        """The key in use."""
        return _kid(_key(self._signing))

    def rotate_keys(self, *, keep: bool = True) -> None:
        """Sign with a new key from now on; the one before is shown a while longer, or (without `keep`) not."""
        self._signing += 1
        self._shown = (*(self._shown if keep else ()), self._signing)

    def keys(self) -> dict[str, Any]:
        """The JSON Web Key Set."""
        return {
            "keys": [
                {
                    **json.loads(RSAAlgorithm.to_jwk(_key(number).public_key())),
                    "kid": _kid(_key(number)),
                    "use": "sig",
                    "alg": "RS256",
                }
                for number in self._shown
            ]
        }


def _of_project(prefix: str, project: Project) -> dict[str, str]:
    namespace = project.path.rpartition("/")[0]
    return {
        f"{prefix}namespace_id": str(int(hashlib.sha256(namespace.encode()).hexdigest()[:6], 16)),
        f"{prefix}namespace_path": namespace,
        f"{prefix}project_id": str(project.id),
        f"{prefix}project_path": project.path,
    }


class DiscoveryPages:
    """Where everyone can read the keys; faults and the log of requests are those of the API."""

    def __init__(self, actions: Actions, faults: Faults) -> None:
        self._actions, self._faults = actions, faults

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/.well-known/openid-configuration", self._configuration)
        app.router.add_get("/oauth/discovery/keys", self._keys)

    async def _configuration(self, request: web.Request) -> web.StreamResponse:
        async def answer(_request: web.Request) -> web.Response:
            url = self._actions.url
            return web.json_response(
                {
                    "issuer": url,
                    "jwks_uri": f"{url}/oauth/discovery/keys",
                    "response_types_supported": ["code"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                }
            )

        return await self._faults.apply(request, answer)

    async def _keys(self, request: web.Request) -> web.StreamResponse:
        async def answer(_request: web.Request) -> web.Response:
            return web.json_response(self._actions.keys())

        return await self._faults.apply(request, answer)
