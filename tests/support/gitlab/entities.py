"""API answers in the shape of GitLab's documentation (https://docs.gitlab.com/api/)."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from tests.support.gitlab.pipelines import Job, Pipeline
from tests.support.gitlab.state import (
    Award,
    CommitStatus,
    Deployment,
    Environment,
    MergeRequest,
    Note,
    Project,
    SshKey,
    User,
)

Json = dict[str, object]


def api_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def user(base: str, person: User) -> Json:
    return {
        "id": person.id,
        "username": person.username,
        "name": person.name,
        "state": person.state,
        "locked": False,
        "avatar_url": None,
        "web_url": f"{base}/{person.username}",
    }


def profile(base: str, person: User) -> Json:
    """What `GET /users/:id` and `GET /user` tell beyond that; `bot` is true for every kind of bot user."""
    return {**user(base, person), "bot": person.bot}


def ssh_key(key: SshKey) -> Json:
    return {
        "id": key.id,
        "title": key.title,
        "created_at": "2026-01-01T00:00:00.000Z",
        "expires_at": key.expires_at,
        "key": key.key,
        "usage_type": key.usage_type,
    }


def project(base: str, what: Project) -> Json:
    return {
        "id": what.id,
        "name": what.name,
        "path": what.name,
        "path_with_namespace": what.path,
        "web_url": f"{base}/{what.path}",
        "default_branch": "main",
        "archived": what.archived,
        "visibility": "public" if what.public else "private",
        "environments_access_level": "enabled" if what.has_environments else "disabled",
    }


def member(base: str, person: User, level: int) -> Json:
    return {**user(base, person), "access_level": level, "expires_at": None, "membership_state": "active"}


def merge_request(base: str, mr: MergeRequest) -> Json:
    return {
        "id": mr.id,
        "iid": mr.iid,
        "project_id": mr.project.id,
        "title": mr.title,
        "description": mr.description,
        "state": mr.state,
        "created_at": api_time(mr.created_at),
        "updated_at": api_time(mr.updated_at),
        "target_branch": mr.target_branch,
        "source_branch": mr.branch,
        "author": user(base, mr.author),
        "assignees": [user(base, person) for person in mr.assignees],
        "assignee": user(base, mr.assignees[0]) if mr.assignees else None,
        "reviewers": [user(base, person) for person in mr.reviewers],
        "source_project_id": None if mr.source_deleted else mr.source_project.id,
        "target_project_id": mr.project.id,
        "labels": mr.labels,
        "draft": mr.draft,
        "work_in_progress": mr.draft,
        "sha": mr.sha,
        "merge_commit_sha": None,
        "references": {"short": f"!{mr.iid}", "relative": f"!{mr.iid}", "full": f"{mr.project.path}!{mr.iid}"},
        "web_url": f"{base}/{mr.project.path}/-/merge_requests/{mr.iid}",
        "user_notes_count": sum(not note.system for note in mr.notes.values()),
    }


def whole_merge_request(base: str, mr: MergeRequest) -> Json:
    """What one that is asked for by itself tells beyond that; lists don't."""
    head = pipeline(base, mr.head_pipeline) if mr.head_pipeline else None
    basic = basic_pipeline(base, mr.head_pipeline) if mr.head_pipeline else None
    return {**merge_request(base, mr), "pipeline": basic, "head_pipeline": head}


def note(base: str, mr: MergeRequest, what: Note) -> Json:
    return {
        "id": what.id,
        "type": "DiscussionNote" if what.in_thread else None,
        "body": what.body,
        "author": user(base, what.author),
        "created_at": api_time(what.created_at),
        "updated_at": api_time(what.updated_at),
        "system": what.system,
        "noteable_id": mr.id,
        "noteable_type": "MergeRequest",
        "project_id": mr.project.id,
        "noteable_iid": mr.iid,
        "resolvable": what.in_thread,
        **(_resolution(base, what) if what.in_thread else {}),
        "confidential": False,
        "internal": False,
        "imported": False,
        "commands_changes": {},
    }


def _resolution(base: str, what: Note) -> Json:
    return {
        "resolved": what.resolved_at is not None,
        "resolved_by": user(base, what.resolved_by) if what.resolved_by else None,
        "resolved_at": api_time(what.resolved_at) if what.resolved_at else None,
    }


def discussion(base: str, mr: MergeRequest, notes: list[Note]) -> Json:
    """https://docs.gitlab.com/api/discussions/"""
    return {
        "id": notes[0].discussion_id,
        "individual_note": not notes[0].in_thread,
        "notes": [note(base, mr, one) for one in notes],
    }


def award(base: str, on: Note, what: Award) -> Json:
    return {
        "id": what.id,
        "name": what.name,
        "user": user(base, what.user),
        "created_at": api_time(what.created_at),
        "updated_at": api_time(what.created_at),
        "awardable_id": on.id,
        "awardable_type": "Note",
        "url": None,
    }


def environment(base: str, what: Environment) -> Json:
    """https://docs.gitlab.com/api/environments/"""
    return {
        "id": what.id,
        "name": what.name,
        "slug": what.slug,
        "description": None,
        "external_url": what.external_url or None,
        "created_at": api_time(what.created_at),
        "updated_at": api_time(what.updated_at),
        "tier": what.tier,
        "state": what.state,
        "auto_stop_at": None,
        "auto_stop_setting": "always",
        "cluster_agent": None,
        "kubernetes_namespace": None,
        "flux_resource_path": None,
        "project": project(base, what.project),
    }


def deployment(base: str, what: Deployment) -> Json:
    """https://docs.gitlab.com/api/deployments/"""
    return {
        "id": what.id,
        "iid": what.iid,
        "ref": what.ref,
        "sha": what.sha,
        "created_at": api_time(what.created_at),
        "updated_at": api_time(what.updated_at),
        "status": what.status,
        "user": user(base, what.user),
        "environment": {
            key: value
            for key, value in environment(base, what.environment).items()
            if key in ("id", "name", "slug", "external_url", "created_at", "updated_at")
        },
        "deployable": {"id": what.id, "name": "deploy", "status": what.status, "ref": what.ref}
        if what.of_a_job
        else None,
    }


def commit_status(base: str, what: CommitStatus) -> Json:
    """https://docs.gitlab.com/api/commits/#commit-status"""
    final = what.status not in ("pending", "running")
    return {
        "id": what.id,
        "sha": what.sha,
        "ref": what.ref,
        "status": what.status,
        "name": what.name,
        "target_url": what.target_url or None,
        "description": what.description or None,
        "created_at": api_time(what.created_at),
        "started_at": None if what.status == "pending" else api_time(what.created_at),
        "finished_at": api_time(what.updated_at) if final else None,
        "allow_failure": False,
        "coverage": None,
        "pipeline_id": what.pipeline_id,
        "author": user(base, what.author),
    }


def basic_pipeline(base: str, what: Pipeline) -> Json:
    """https://docs.gitlab.com/api/pipelines/"""
    return {
        "id": what.id,
        "iid": what.iid,
        "project_id": what.project.id,
        "sha": what.sha,
        "ref": what.ref,
        "status": what.status,
        "source": what.source,
        "created_at": api_time(what.created_at),
        "updated_at": api_time(what.updated_at),
        "web_url": f"{base}/{what.project.path}/-/pipelines/{what.id}",
    }


def pipeline(base: str, what: Pipeline) -> Json:
    return {
        **basic_pipeline(base, what),
        "before_sha": "0" * 40,
        "tag": False,
        "yaml_errors": None,
        "user": user(base, what.user) if what.user else None,
        "started_at": None,
        "finished_at": None,
        "committed_at": None,
        "duration": None,
        "queued_duration": None,
        "coverage": None,
    }


def job(base: str, what: Job, now: datetime) -> Json:
    """https://docs.gitlab.com/api/jobs/"""
    facts, there = what.project.facts[what.pipeline.sha], what.has_artifacts(now)
    archive = {"filename": "artifacts.zip", "size": 1000 + sum(map(_bytes_of, what.artifacts.values()))}
    return {
        "id": what.id,
        "status": what.status,
        "stage": what.stage,
        "name": what.name,
        "ref": what.pipeline.ref,
        "tag": False,
        "coverage": None,
        "allow_failure": what.allow_failure,
        "created_at": api_time(what.created_at),
        "started_at": api_time(what.started_at) if what.started_at else None,
        "finished_at": api_time(what.finished_at) if what.finished_at else None,
        "erased_at": None,
        "duration": None,
        "queued_duration": 0.1,
        "user": profile(base, what.user),
        "commit": {
            "id": what.pipeline.sha,
            "short_id": what.pipeline.sha[:8],
            "title": facts.message.partition("\n")[0],
            "message": facts.message,
            "author_name": facts.author,
            "created_at": api_time(facts.at),
            "parent_ids": [sha for sha in (facts.parent, facts.merged) if sha],
        },
        "pipeline": basic_pipeline(base, what.pipeline),
        **({"failure_reason": what.failure_reason} if what.status == "failed" else {}),
        "web_url": f"{base}/{what.project.path}/-/jobs/{what.id}",
        "project": {"ci_job_token_scope_enabled": False},
        **({"artifacts_file": archive} if there else {}),
        "artifacts": [{"file_type": "archive", "file_format": "zip", **archive}] if there else [],
        "runner": None,
        "runner_manager": None,
        "artifacts_expire_at": api_time(what.artifacts_expire_at) if what.artifacts_expire_at else None,
        "archived": False,
        "tag_list": [],
    }


def _bytes_of(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)
