"""The part of GitLab's API that reads branches and commits, and makes commits; blocking, for the client's threads.

https://docs.gitlab.com/api/commits/, https://docs.gitlab.com/api/branches/, https://docs.gitlab.com/api/repository_files/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from urllib.parse import quote

import requests

from ravebot.agents.diff.model import BranchCommit, BranchHead, Committed, Overtaken
from ravebot.errors import FileNotFound, NotFound, Unacceptable
from ravebot.gitlab import fields
from ravebot.gitlab.fields import Json
from ravebot.gitlab.transport import Transport
from ravebot.sandboxes.model import MergeRequestRef

_PIECE_BYTES = 16 * 1024
_MOST_COMMITS = 500
_LONGEST_MESSAGE = 20_000
_OVERTAKEN = (
    "A file with this name already exists",
    "A file with this name doesn't exist",
    "A directory with this name already exists",
    "The file has changed since you started editing it",
)
"""GitLab's words, all with status 400: of Gitaly's index errors and of app/services/files/multi_service.rb."""
_NO_FILE = "404 File Not Found"
"""GitLab's words when it found the commit (lib/api/files.rb); otherwise it is `404 Commit Not Found`."""
_NO_BRANCH = "You can only create or edit files when you are on a branch"


def branch(transport: Transport, project_id: int, name: str) -> BranchHead | None:
    """A branch; None if there is none of that name."""
    try:
        body = transport.get(f"/projects/{project_id:d}/repository/branches/{quote(name, safe='')}")
    except NotFound:
        transport.get(f"/projects/{project_id:d}")  # raises NotFound if it is the project that we may not see
        return None
    head = fields.sha(fields.mapping(body, "commit"), "id")
    protected = fields.flag(body, "protected")
    return BranchHead(
        head,
        protected=protected,
        can_push=fields.flag(body, "can_push"),
        developers_can_push=not protected or fields.flag(body, "developers_can_push"),
    )


def branch_commits(transport: Transport, project_id: int, name: str, until_sha: str) -> list[BranchCommit] | None:
    """The commits after `until_sha` that the branch has, the newest first; None if the branch is gone.

    None as well if the branch does not know `until_sha` any more.
    """
    if branch(transport, project_id, name) is None:
        return None
    try:
        return _commits(
            transport.list(f"/projects/{project_id:d}/repository/commits", ref_name=f"{until_sha}..refs/heads/{name}")
        )
    except NotFound:
        return None


def merge_request_commits(transport: Transport, ref: MergeRequestRef) -> list[BranchCommit]:
    return _commits(transport.list(f"/projects/{ref.project_id:d}/merge_requests/{ref.iid:d}/commits"))


def last_commits(transport: Transport, project_id: int, sha: str, paths: Sequence[str]) -> Mapping[str, str]:
    """The last commit of each file, seen from a commit."""
    found: dict[str, str] = {}
    for path in paths:
        address = f"/projects/{project_id:d}/repository/files/{quote(path, safe='')}"
        try:
            given = transport.head(address, ref=sha).get("X-Gitlab-Last-Commit-Id")
        except NotFound:
            continue
        found[path] = fields.sha({"id": given}, "id")
    return found


def file(transport: Transport, project_id: int, path: str, ref: str, max_bytes: int) -> bytes:
    """A file's content; of a longer one, `max_bytes` and one byte more.

    Raises FileNotFound if the commit is there and has none, and otherwise NotFound.
    """

    def take(response: requests.Response) -> bytes:
        content = b""
        for piece in response.iter_content(_PIECE_BYTES):
            content += piece
            if len(content) > max_bytes or transport.stopping.is_set():
                break
        return content[: max_bytes + 1]

    address = f"/projects/{project_id:d}/repository/files/{quote(path, safe='')}/raw"
    try:
        return transport.stream(address, take, ref=ref)
    except NotFound as error:
        raise (FileNotFound if _NO_FILE in str(error) else NotFound)(str(error)) from error


def commit(
    transport: Transport, project_id: int, branch_name: str, message: str, actions: Sequence[Mapping[str, object]]
) -> Committed:
    """Make one commit on a branch. Raises Overtaken if the files there are not those that the actions expect."""
    body = {"branch": branch_name, "commit_message": message, "actions": [dict(action) for action in actions]}
    try:
        made = transport.post(f"/projects/{project_id:d}/repository/commits", body)
    except Unacceptable as error:
        if any(words in str(error) for words in (*_OVERTAKEN, _NO_BRANCH)):
            raise Overtaken(str(error)) from error
        raise
    return Committed(fields.sha(made, "id"), _web_url(made))


def _commits(listed: Iterable[Json]) -> list[BranchCommit]:
    return [
        BranchCommit(fields.sha(item, "id"), fields.text(item, "message", _LONGEST_MESSAGE), _web_url(item))
        for item in islice(listed, _MOST_COMMITS)
    ]


def _web_url(body: Json) -> str:
    try:
        return fields.web_url(body, "web_url")
    except fields.Malformed:
        return ""
