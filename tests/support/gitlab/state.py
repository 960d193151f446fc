"""What this GitLab knows: users, projects, merge requests, notes; and who may see what."""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tests.support.gitlab.pipelines import Pipeline

GUEST, REPORTER, DEVELOPER, MAINTAINER = 10, 20, 30, 40

Files = Mapping[str, "bytes | str"]


TOUCH_INTERVAL = timedelta(minutes=1)
"""A comment moves its merge request's `updated_at` only so long after its last move, as GitLab does
(app/models/concerns/throttled_touch.rb)."""


@dataclass(frozen=True)
class SshKey:
    id: int
    title: str
    key: str
    usage_type: str = "auth_and_signing"
    expires_at: str | None = None


@dataclass(frozen=True)
class TokenFacts:
    """What a token may do, and until when (a date)."""

    scopes: tuple[str, ...] = ("api",)
    expires_at: str | None = None


@dataclass(eq=False)
class User:
    id: int
    username: str
    name: str
    keys: list[SshKey] = field(default_factory=list)
    state: str = "active"
    """Or `blocked`, `banned`, `deactivated`, `ldap_blocked`, `blocked_pending_approval`."""
    bot: bool = False
    """A service account, or the user of a project's or group's access token."""

    @property
    def active(self) -> bool:
        return self.state == "active"


@dataclass(frozen=True)
class CommitFacts:
    """What a commit is beside its files. `executable`: of which files the mode says so."""

    parent: str
    message: str
    author: str
    at: datetime
    executable: frozenset[str]
    merged: str = ""
    """The second parent of a commit that merges."""


@dataclass(eq=False)
class Project:
    """`facts`: of each commit; `protected`: the role that may push to a branch; `deleted`: branches that are gone."""

    id: int
    path: str
    public: bool
    members: dict[int, int] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    facts: dict[str, CommitFacts] = field(default_factory=dict)
    protected: dict[str, int] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    head: str = ""
    environments: dict[int, Environment] = field(default_factory=dict)
    deployments: dict[int, Deployment] = field(default_factory=dict)
    statuses: list[CommitStatus] = field(default_factory=list)
    archived: bool = False
    has_environments: bool = True
    """The feature "Environments" in the project's settings."""
    pipelines: list[Pipeline] = field(default_factory=list)
    """Oldest first."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(eq=False)
class Environment:
    """`protected`: only those who may deploy to it may change it (a paid feature); nobody of ours may."""

    id: int
    project: Project
    name: str
    slug: str
    external_url: str
    tier: str
    created_at: datetime
    updated_at: datetime
    state: str = "available"
    protected: bool = False


@dataclass(eq=False)
class Deployment:
    """`of_a_job`: a job of a pipeline made it."""

    id: int
    iid: int
    environment: Environment
    sha: str
    ref: str
    user: User
    status: str
    created_at: datetime
    updated_at: datetime
    of_a_job: bool = False


@dataclass(eq=False)
class CommitStatus:
    id: int
    sha: str
    name: str
    ref: str
    pipeline_id: int
    author: User
    created_at: datetime
    updated_at: datetime
    status: str = "created"
    description: str = ""
    target_url: str = ""


@dataclass(frozen=True)
class Award:
    id: int
    user: User
    name: str
    created_at: datetime


@dataclass(eq=False)
class Note:
    id: int
    author: User
    body: str
    created_at: datetime
    updated_at: datetime
    discussion_id: str
    system: bool = False
    in_thread: bool = False
    """Of type DiscussionNote: a reply, or the comment that was replied to; it can be resolved."""
    resolved_at: datetime | None = None
    resolved_by: User | None = None
    edited_at: datetime | None = None
    awards: list[Award] = field(default_factory=list)


@dataclass(eq=False)
class MergeRequest:
    id: int
    iid: int
    project: Project
    source_project: Project
    author: User
    title: str
    description: str
    branch: str
    sha: str
    created_at: datetime
    updated_at: datetime
    state: str = "opened"
    assignees: list[User] = field(default_factory=list)
    reviewers: list[User] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    approved_by: list[User] = field(default_factory=list)
    approvals_needed: int = 1
    notes: dict[int, Note] = field(default_factory=dict)
    source_deleted: bool = False
    head_pipeline: Pipeline | None = None
    target_branch: str = "main"

    def discussion(self, discussion_id: str) -> list[Note]:
        """Its notes, oldest first; an individual note is one, too."""
        return [note for note in self.notes.values() if note.discussion_id == discussion_id]

    @property
    def discussions(self) -> list[list[Note]]:
        """Every discussion, by the time of its first note."""
        ids = dict.fromkeys(note.discussion_id for note in self.notes.values())
        return [self.discussion(one) for one in ids]

    @property
    def draft(self) -> bool:
        return re.match(r"\s*(\[draft\]|\(draft\)|draft:|draft - )", self.title, re.IGNORECASE) is not None


@dataclass(frozen=True)
class Mention:
    """An `@name` that GitLab would have told somebody of."""

    mr: MergeRequest
    note: Note
    name: str


@dataclass(frozen=True)
class QuickAction:
    """A `/command` that GitLab took out of a note and ran."""

    mr: MergeRequest
    user: User
    command: str
    argument: str


class State:
    """Everything, behind one lock: tests call from their thread, HTTP from the server's."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users: dict[int, User] = {}
        self.projects: dict[int, Project] = {}
        self.merge_requests: list[MergeRequest] = []
        self.tokens: dict[str, User] = {}
        self.token_facts: dict[str, TokenFacts] = {}
        self.mentions: list[Mention] = []
        self.quick_actions: list[QuickAction] = []
        self._ids = itertools.count(1000)
        self._clock = datetime.now(UTC)

    def next_id(self) -> int:
        return next(self._ids)

    def now(self) -> datetime:
        """The time, never twice the same, so that orders by time are total."""
        self._clock = max(datetime.now(UTC), self._clock + timedelta(milliseconds=1))
        return self._clock

    def add_user(self, username: str, keys: tuple[SshKey | str, ...], *, bot: bool = False) -> User:
        if self.user_named(username):
            raise ValueError(f"there is a user {username} already")
        user = User(self.next_id(), username, username.replace("-", " ").title(), bot=bot)
        for key in keys:
            user.keys.append(key if isinstance(key, SshKey) else SshKey(self.next_id(), "laptop", key))
        self.users[user.id] = user
        return user

    def user_named(self, username: str) -> User | None:
        return next((user for user in self.users.values() if user.username.lower() == username.lower()), None)

    def add_project(self, path: str, files: Files, *, public: bool = False) -> Project:
        if self.project_at(path):
            raise ValueError(f"there is a project {path} already")
        project = Project(self.next_id(), path, public)
        project.head = self.commit(project, files)
        self.projects[project.id] = project
        return project

    def project_at(self, path: str) -> Project | None:
        return next((project for project in self.projects.values() if project.path == path), None)

    def commit(
        self,
        project: Project,
        files: Files,
        *,
        parent: str = "",
        message: str = "Change files",
        author: str = "Somebody",
        executable: frozenset[str] | None = None,
        merged: str = "",
    ) -> str:
        """Store a tree and name it; the name is a SHA-1 like Git's. By default scripts (`#!`) are executable."""
        tree = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
        digest = hashlib.sha1(f"{project.path} {self.next_id()}".encode())
        for name, content in sorted(tree.items()):
            digest.update(name.encode() + b"\0" + content)
        sha = digest.hexdigest()
        project.commits[sha] = tree
        if executable is None:
            executable = frozenset(name for name, content in tree.items() if content.startswith(b"#!"))
        project.facts[sha] = CommitFacts(parent, message, author, self.now(), executable, merged)
        return sha

    def branch(self, project: Project, name: str) -> str | None:
        """The head of a branch: of `main`, or of what a merge request of the project comes from."""
        if name in project.deleted:
            return None
        if name == "main":
            return project.head
        of = (mr for mr in reversed(self.merge_requests) if mr.source_project is project and mr.branch == name)
        return next((mr.sha for mr in of), None)

    def history(self, project: Project, sha: str) -> Iterator[str]:
        """A commit and those before it."""
        while sha in project.commits:
            yield sha
            sha = project.facts[sha].parent

    def last_commit(self, project: Project, sha: str, path: str) -> str:
        """The commit that changed a file last, seen from a commit that has it."""
        for one in self.history(project, sha):
            parent = project.facts[one].parent
            before = project.commits.get(parent, {}).get(path)
            modes = (
                path in project.facts[one].executable,
                parent in project.facts and (path in project.facts[parent].executable),
            )
            if before != project.commits[one].get(path) or modes[0] != modes[1]:
                return one
        return sha

    def add_merge_request(
        self,
        project: Project,
        author: User,
        title: str,
        branch: str,
        files: Files,
        source: Project,
        description: str,
    ) -> MergeRequest:
        iid = 1 + max((mr.iid for mr in self.merge_requests if mr.project is project), default=0)
        if source is not project:  # a fork has what it was made from
            for one in self.history(project, project.head):
                source.commits.setdefault(one, project.commits[one])
                source.facts.setdefault(one, project.facts[one])
        source.deleted.discard(branch)
        sha = self.commit(
            source,
            {**project.commits[project.head], **files},
            parent=project.head,
            message=title,
            author=author.name,
        )
        self.share(source, sha, project)
        now = self.now()
        mr = MergeRequest(
            self.next_id(),
            iid,
            project,
            source,
            author,
            title,
            description,
            branch,
            sha,
            created_at=now,
            updated_at=now,
        )
        self.merge_requests.append(mr)
        return mr

    @staticmethod
    def share(source: Project, sha: str, target: Project) -> None:
        """Let the target of a merge request have a commit of its source."""
        target.commits[sha], target.facts[sha] = source.commits[sha], source.facts[sha]

    def merge_request(self, project: Project, iid: int) -> MergeRequest | None:
        return next((mr for mr in self.merge_requests if mr.project is project and mr.iid == iid), None)

    def add_note(self, mr: MergeRequest, author: User, body: str, *, system: bool = False, reply_to: str = "") -> Note:
        """A new note; `reply_to` is the discussion that it is a reply in.

        An individual note that is replied to begins a thread, and a reply in a resolved thread is resolved, too
        (app/services/notes/create_service.rb, build_service.rb).
        """
        now, number = self.now(), self.next_id()
        own = hashlib.sha1(f"discussion of note {number}".encode()).hexdigest()
        note = Note(number, author, body, now, now, reply_to or own, system=system, in_thread=bool(reply_to))
        if reply_to:
            first, *others = mr.discussion(reply_to)
            if all(one.resolved_at for one in (first, *others)):
                note.resolved_at, note.resolved_by = now, author
            first.in_thread = True
        mr.notes[note.id] = note
        if now - mr.updated_at > TOUCH_INTERVAL:
            mr.updated_at = now
        return note

    def add_environment(self, project: Project, name: str, external_url: str, tier: str) -> Environment:
        """The slug is not the name, so that it gets a suffix (app/models/environment.rb)."""
        now, number = self.now(), self.next_id()
        slug = f"{re.sub(r'[^a-z0-9]+', '-', name.lower())[:17]}-{number:06d}"
        made = Environment(number, project, name, slug, external_url, tier, now, now)
        project.environments[number] = made
        return made

    def add_deployment(self, environment: Environment, sha: str, ref: str, user: User, status: str) -> Deployment:
        now, project = self.now(), environment.project
        made = Deployment(
            self.next_id(), len(project.deployments) + 1, environment, sha, ref, user, "created", now, now
        )  # fmt: skip
        project.deployments[made.id] = made
        self.move_deployment(made, status)
        return made

    def move_deployment(self, deployment: Deployment, status: str) -> None:
        """A success starts the environment again (app/services/deployments/update_environment_service.rb)."""
        deployment.status, deployment.updated_at = status, self.now()
        if status == "success" and deployment.environment.state != "available":
            deployment.environment.state, deployment.environment.updated_at = "available", self.now()

    def add_pipeline(self, project: Project, sha: str, ref: str, source: str = "external") -> Pipeline:
        now = self.now()
        made = Pipeline(self.next_id(), len(project.pipelines) + 1, project, sha, ref, source, now, now)
        project.pipelines.append(made)
        return made

    def add_status(
        self, project: Project, sha: str, name: str, ref: str, pipeline_id: int, author: User
    ) -> CommitStatus:
        now = self.now()
        made = CommitStatus(self.next_id(), sha, name, ref, pipeline_id, author, now, now)
        project.statuses.append(made)
        return made

    def level(self, project: Project, user: User) -> int:
        """The user's role there; 0 for a stranger."""
        return project.members.get(user.id, 0)

    def can_see(self, project: Project, user: User) -> bool:
        return project.public or self.level(project, user) >= GUEST

    def can_read_code(self, project: Project, user: User) -> bool:
        return project.public or self.level(project, user) >= REPORTER
