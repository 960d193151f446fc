"""Webhook bodies in the shape GitLab 17 and 18 send: merge request events and comments on merge requests.

https://docs.gitlab.com/user/project/integrations/webhook_events/
"""

from __future__ import annotations

import zlib
from datetime import datetime

from tests.support.gitlab.state import MergeRequest, Note, Project, User

Json = dict[str, object]


def hook_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def user(base: str, person: User) -> Json:
    return {
        "id": person.id,
        "name": person.name,
        "username": person.username,
        "avatar_url": f"{base}/uploads/-/avatar/{person.id}.png",
        "email": "[REDACTED]",
    }


def project(base: str, what: Project) -> Json:
    namespace = what.path.rpartition("/")[0]
    return {
        "id": what.id,
        "name": what.name,
        "description": None,
        "web_url": f"{base}/{what.path}",
        "avatar_url": None,
        "git_ssh_url": f"git@localhost:{what.path}.git",
        "git_http_url": f"{base}/{what.path}.git",
        "namespace": namespace,
        "visibility_level": 20 if what.public else 0,
        "path_with_namespace": what.path,
        "default_branch": "main",
        "ci_config_path": "",
        "homepage": f"{base}/{what.path}",
        "url": f"git@localhost:{what.path}.git",
        "ssh_url": f"git@localhost:{what.path}.git",
        "http_url": f"{base}/{what.path}.git",
    }


def _merge_request(base: str, mr: MergeRequest) -> Json:
    return {
        "id": mr.id,
        "iid": mr.iid,
        "title": mr.title,
        "description": mr.description,
        "state": mr.state,
        "author_id": mr.author.id,
        "assignee_id": mr.assignees[0].id if mr.assignees else None,
        "assignee_ids": [person.id for person in mr.assignees],
        "reviewer_ids": [person.id for person in mr.reviewers],
        "created_at": hook_time(mr.created_at),
        "updated_at": hook_time(mr.updated_at),
        "source_branch": mr.branch,
        "target_branch": mr.target_branch,
        "source_project_id": None if mr.source_deleted else mr.source_project.id,
        "target_project_id": mr.project.id,
        "source": None if mr.source_deleted else project(base, mr.source_project),
        "target": project(base, mr.project),
        "url": f"{base}/{mr.project.path}/-/merge_requests/{mr.iid}",
        "merge_status": "can_be_merged",
        "detailed_merge_status": "mergeable",
        "merge_commit_sha": None,
        "head_pipeline_id": None,
        "draft": mr.draft,
        "work_in_progress": mr.draft,
        "labels": [_label(mr, name) for name in mr.labels],
        "last_commit": {
            "id": mr.sha,
            "message": mr.title,
            "title": mr.title,
            "timestamp": mr.updated_at.isoformat(),
            "url": f"{base}/{mr.project.path}/-/commit/{mr.sha}",
            "author": {"name": mr.author.name, "email": "[REDACTED]"},
        },
    }


def _label(mr: MergeRequest, name: str) -> Json:
    number = zlib.crc32(name.encode())
    return {
        "id": number,
        "title": name,
        "color": "#ffffff",
        "project_id": mr.project.id,
        "created_at": hook_time(mr.created_at),
        "updated_at": hook_time(mr.created_at),
        "template": False,
        "description": "",
        "type": "ProjectLabel",
        "group_id": None,
    }


def merge_request_event(
    base: str,
    mr: MergeRequest,
    by: User,
    action: str,
    *,
    oldrev: str | None = None,
    changes: Json | None = None,
) -> Json:
    attributes = {**_merge_request(base, mr), "action": action}
    if oldrev is not None:
        attributes["oldrev"] = oldrev
    return {
        "object_kind": "merge_request",
        "event_type": "merge_request",
        "user": user(base, by),
        "project": project(base, mr.project),
        "object_attributes": attributes,
        "labels": [_label(mr, name) for name in mr.labels],
        "changes": changes or {},
        "repository": _repository(base, mr.project),
        "assignees": [user(base, person) for person in mr.assignees],
        "reviewers": [user(base, person) for person in mr.reviewers],
    }


def note_event(base: str, mr: MergeRequest, note: Note, by: User, action: str) -> Json:
    return {
        "object_kind": "note",
        "event_type": "note",
        "user": user(base, by),
        "project_id": mr.project.id,
        "project": project(base, mr.project),
        "object_attributes": {
            "id": note.id,
            "note": note.body,
            "description": note.body,
            "noteable_type": "MergeRequest",
            "noteable_id": mr.id,
            "author_id": note.author.id,
            "project_id": mr.project.id,
            "action": action,
            "created_at": hook_time(note.created_at),
            "updated_at": hook_time(note.updated_at),
            "system": note.system,
            "internal": False,
            "type": "DiscussionNote" if note.in_thread else None,
            "line_code": None,
            "commit_id": None,
            "discussion_id": note.discussion_id,
            "st_diff": None,
            "url": f"{base}/{mr.project.path}/-/merge_requests/{mr.iid}#note_{note.id}",
        },
        "repository": _repository(base, mr.project),
        "merge_request": _merge_request(base, mr),
    }


def _repository(base: str, what: Project) -> Json:
    return {
        "name": what.name,
        "url": f"git@localhost:{what.path}.git",
        "description": None,
        "homepage": f"{base}/{what.path}",
    }
