"""What people do in this GitLab, and all that GitLab makes of it: system notes, quick actions, webhooks."""

from __future__ import annotations

import secrets

from tests.support.gitlab import notes, payloads
from tests.support.gitlab.hooks import Attempt, Hook, Hooks
from tests.support.gitlab.oidc import TokenActions
from tests.support.gitlab.state import (
    DEVELOPER,
    MAINTAINER,
    Environment,
    Files,
    Mention,
    MergeRequest,
    Note,
    Project,
    QuickAction,
    SshKey,
    State,
    TokenFacts,
    User,
)


class Actions(TokenActions):
    """The Python side: synchronous, callable from any thread, never waits for a webhook's answer."""

    def __init__(self) -> None:
        self.state = State()
        self.hooks = Hooks()
        self.url = ""
        self.local_hooks_allowed = True
        """GitLab's setting "Allow requests to the local network from webhooks and integrations"."""
        self.knows_signing_tokens = True
        """Whether this GitLab is new enough to take and tell of them."""

    def add_user(self, username: str, keys: tuple[SshKey | str, ...] | list[str] = (), *, bot: bool = False) -> User:
        """Register a person with their SSH keys (OpenSSH lines), or a bot's user."""
        with self.state.lock:
            return self.state.add_user(username, tuple(keys), bot=bot)

    def add_key(
        self, user: User, key: str, *, usage_type: str = "auth_and_signing", expires_at: str | None = None
    ) -> None:
        with self.state.lock:
            user.keys.append(SshKey(self.state.next_id(), "key", key, usage_type, expires_at))

    def token_for(self, user: User, scopes: tuple[str, ...] = ("api",), expires_at: str | None = None) -> str:
        """A new personal access token of theirs."""
        token = f"glpat-{secrets.token_urlsafe(15)}"
        with self.state.lock:
            self.state.tokens[token] = user
            self.state.token_facts[token] = TokenFacts(scopes, expires_at)
        return token

    def revoke(self, token: str) -> None:
        with self.state.lock:
            self.state.tokens.pop(token, None)

    def add_project(self, path: str, files: Files | None = None, *, public: bool = False) -> Project:
        """A project (private unless said otherwise) whose `main` holds these files."""
        with self.state.lock:
            return self.state.add_project(path, files or {"README.md": f"# {path}\n"}, public=public)

    def move(self, project: Project, path: str) -> None:
        """Rename it, or transfer it to another namespace; GitLab sends no webhook of a project for that."""
        with self.state.lock:
            project.path = path

    def archive(self, project: Project) -> None:
        with self.state.lock:
            project.archived = True

    def delete_source(self, mr: MergeRequest) -> None:
        """Delete the fork that a merge request comes from; the merge request stays open."""
        with self.state.lock:
            mr.source_deleted, mr.updated_at = True, self.state.now()

    def set_role(self, project: Project, user: User, level: int) -> None:
        """Make the user a member with that access level; 0 takes the membership away."""
        with self.state.lock:
            if level:
                project.members[user.id] = level
            else:
                project.members.pop(user.id, None)

    def open_merge_request(
        self,
        project: Project,
        author: User,
        title: str = "Add a feature",
        branch: str = "feature",
        files: Files | None = None,
        *,
        fork_of: Project | None = None,
        draft: bool = False,
        assignees: tuple[User, ...] = (),
        reviewers: tuple[User, ...] = (),
        description: str = "",
        labels: tuple[str, ...] = (),
    ) -> MergeRequest:
        """Open one against `project`, or from the fork `project` against `fork_of`. Any title is taken."""
        with self.state.lock:
            full_title = f"Draft: {title}" if draft else title
            target = fork_of or project
            mr = self.state.add_merge_request(target, author, full_title, branch, files or {}, project, description)
            mr.assignees, mr.reviewers, mr.labels = list(assignees), list(reviewers), list(labels)
            self._merge_request_event(mr, author, "open")
            return mr

    def push(self, mr: MergeRequest, files: Files, by: User | None = None) -> str:
        """New code on the branch; returns the new head."""
        with self.state.lock:
            user, project = by or mr.author, mr.source_project
            tree = {**project.commits[mr.sha], **files}
            sha = self.state.commit(project, tree, parent=mr.sha, author=user.name)
            self.move_branch(project, mr.branch, sha, user)
            return sha

    def move_branch(self, project: Project, branch: str, sha: str, by: User) -> None:
        """Let a branch have a new head, and with it the merge requests that come from it."""
        with self.state.lock:
            if branch == "main":
                project.head = sha
            for mr in self.state.merge_requests:
                if mr.source_project is project and mr.branch == branch and mr.state == "opened":
                    old, mr.sha, mr.updated_at = mr.sha, sha, self.state.now()
                    self.state.share(project, sha, mr.project)
                    self.state.add_note(mr, by, "added 1 commit", system=True)
                    self._merge_request_event(mr, by, "update", oldrev=old)

    def protect(self, project: Project, branch: str, level: int = MAINTAINER) -> None:
        """Protect a branch: only who has that role may push to it."""
        with self.state.lock:
            project.protected[branch] = level

    def delete_branch(self, project: Project, branch: str) -> None:
        with self.state.lock:
            project.deleted.add(branch)

    def stop_environment(self, environment: Environment, *, force: bool = False) -> None:
        """As its page's button does: by its `on_stop` job, if it has one and `force` does not skip it.

        No webhook tells of it.
        """
        with self.state.lock:
            job = None if force else self.on_stop_job(environment)
            if job is not None:
                self.play_job(job)
            environment.state, environment.updated_at = "stopping" if job else "stopped", self.state.now()

    def delete_environment(self, environment: Environment) -> None:
        """As its page does with a stopped one; its deployments go with it."""
        with self.state.lock:
            project = environment.project
            del project.environments[environment.id]
            for deployment in [one for one in project.deployments.values() if one.environment is environment]:
                del project.deployments[deployment.id]

    def environment(self, project: Project, name: str) -> Environment | None:
        with self.state.lock:
            return next((one for one in project.environments.values() if one.name == name), None)

    def statuses(self, project: Project, sha: str) -> list[tuple[str, str, str]]:
        """Name, state and description of a commit's statuses, oldest first."""
        with self.state.lock:
            return [(one.name, one.status, one.description) for one in project.statuses if one.sha == sha]

    def files_of(self, mr: MergeRequest) -> dict[str, bytes]:
        """The files at the head of a merge request."""
        with self.state.lock:
            return dict(mr.source_project.commits[mr.sha])

    def close(self, mr: MergeRequest, by: User | None = None) -> None:
        self._set_state(mr, by, "closed", "close")

    def merge(self, mr: MergeRequest, by: User | None = None) -> None:
        self._set_state(mr, by, "merged", "merge")

    def reopen(self, mr: MergeRequest, by: User | None = None) -> None:
        self._set_state(mr, by, "opened", "reopen")

    def approve(self, mr: MergeRequest, by: User) -> None:
        """Approve it; GitLab tells the last approval that is needed by another name."""
        with self.state.lock:
            if by not in mr.approved_by:
                mr.approved_by.append(by)
                complete = len(mr.approved_by) >= mr.approvals_needed
                self._merge_request_event(mr, by, "approved" if complete else "approval")

    def unapprove(self, mr: MergeRequest, by: User) -> None:
        with self.state.lock:
            if by in mr.approved_by:
                was_complete = len(mr.approved_by) >= mr.approvals_needed
                mr.approved_by.remove(by)
                incomplete = was_complete and len(mr.approved_by) < mr.approvals_needed
                self._merge_request_event(mr, by, "unapproved" if incomplete else "unapproval")

    def mark_ready(self, mr: MergeRequest, by: User | None = None) -> None:
        self.retitle(mr, mr.title.removeprefix("Draft: "), by)

    def retitle(self, mr: MergeRequest, title: str, by: User | None = None) -> None:
        with self.state.lock:
            before, was_draft = mr.title, mr.draft
            mr.title, mr.updated_at = title, self.state.now()
            changes: payloads.Json = {"title": {"previous": before, "current": title}}
            if was_draft != mr.draft:
                changes["draft"] = {"previous": was_draft, "current": mr.draft}
            self._merge_request_event(mr, by or mr.author, "update", changes=changes)

    def retarget(self, mr: MergeRequest, branch: str, by: User | None = None) -> None:
        """Let a merge request be meant for another branch."""
        with self.state.lock:
            before, mr.target_branch, mr.updated_at = mr.target_branch, branch, self.state.now()
            changes: payloads.Json = {"target_branch": {"previous": before, "current": branch}}
            self._merge_request_event(mr, by or mr.author, "update", changes=changes)

    def assign(self, mr: MergeRequest, *people: User, by: User | None = None) -> None:
        with self.state.lock:
            mr.assignees, mr.updated_at = list(people), self.state.now()
            self._merge_request_event(mr, by or mr.author, "update", changes={"assignees": {}})

    def label(self, mr: MergeRequest, *names: str, by: User | None = None) -> None:
        """Let a merge request have exactly these labels."""
        with self.state.lock:
            mr.labels, mr.updated_at = list(names), self.state.now()
            self._merge_request_event(mr, by or mr.author, "update", changes={"labels": {}})

    def comment(self, mr: MergeRequest, user: User, body: str, *, reply_to: Note | None = None) -> Note | None:
        """Post a comment, or a reply in another's thread; None when nothing was left of it after its quick actions."""
        with self.state.lock:
            text, actions = notes.take_quick_actions(body)
            for command, argument in actions:
                self._quick_action(mr, user, command, argument)
            if actions and not text:
                return None
            note = self.state.add_note(mr, user, text, reply_to=reply_to.discussion_id if reply_to else "")
            self._mentions(mr, note)
            self._note_event(mr, note, user, "create")
            return note

    def edit(self, mr: MergeRequest, note: Note, user: User, body: str) -> None:
        with self.state.lock:
            text, actions = notes.take_quick_actions(body)
            for command, argument in actions:
                self._quick_action(mr, user, command, argument)
            note.body, note.updated_at = text, self.state.now()
            note.edited_at = note.updated_at
            self._mentions(mr, note)
            self._note_event(mr, note, user, "update")

    def resolve(self, mr: MergeRequest, note: Note, by: User) -> None:
        """Resolve a note's thread."""
        with self.state.lock:
            now = self.state.now()
            for one in mr.discussion(note.discussion_id):
                if one.in_thread and one.resolved_at is None:
                    one.resolved_at, one.resolved_by, one.updated_at = now, by, now

    def delete_note(self, mr: MergeRequest, note: Note) -> None:
        with self.state.lock:
            mr.notes.pop(note.id, None)

    def notes(self, mr: MergeRequest, *, system: bool = False) -> list[Note]:
        """People's (and the bot's) notes, oldest first; with `system` GitLab's own too."""
        with self.state.lock:
            return [note for note in mr.notes.values() if system or not note.system]

    def emoji(self, note: Note) -> list[str]:
        with self.state.lock:
            return [award.name for award in note.awards]

    @property
    def mentions(self) -> list[Mention]:
        with self.state.lock:
            return list(self.state.mentions)

    @property
    def quick_actions(self) -> list[QuickAction]:
        with self.state.lock:
            return list(self.state.quick_actions)

    def add_hook(
        self,
        project: Project | None,
        url: str,
        *,
        secret_token: str | None = None,
        signing_token: str | None = None,
        retries: int = 0,
    ) -> Hook:
        """A webhook of the project, or (None) a system hook.

        Like GitLab, it does not try again what failed, unless `retries` says how often.
        """
        with self.state.lock:
            return self.hooks.add(url, project.id if project else None, secret_token, signing_token, retries)

    @property
    def hooks_paused(self) -> bool:
        """While true, events are lost as when GitLab has disabled the hooks."""
        return self.hooks.paused

    @hooks_paused.setter
    def hooks_paused(self, paused: bool) -> None:
        self.hooks.paused = paused

    @property
    def deliveries(self) -> list[Attempt]:
        """Every attempt so far, oldest first."""
        return list(self.hooks.attempts)

    def redeliver(self, attempt: Attempt | None = None) -> None:
        """Send one (the last unless told) again, as GitLab's "Resend request" does: same body, same key."""
        self.hooks.send((attempt or self.hooks.attempts[-1]).message)

    def _set_state(self, mr: MergeRequest, by: User | None, state: str, action: str) -> None:
        with self.state.lock:
            if mr.state == state:
                return
            user = by or mr.author
            mr.state = state
            self.state.add_note(mr, user, "reopened" if state == "opened" else state, system=True)
            self._merge_request_event(mr, user, action)

    def _quick_action(self, mr: MergeRequest, user: User, command: str, argument: str) -> None:
        self.state.quick_actions.append(QuickAction(mr, user, command, argument))
        if self.state.level(mr.project, user) < DEVELOPER and user is not mr.author:
            return
        if command in {"close", "merge", "reopen"}:
            state = {"close": "closed", "merge": "merged", "reopen": "opened"}[command]
            self._set_state(mr, user, state, command)
        elif command in {"label", "tag"}:
            mr.labels.extend(argument.replace("~", "").split())
        elif command == "assign":
            named = [self.state.user_named(name.lstrip("@")) for name in argument.split()]
            mr.assignees.extend(person for person in named if person and person not in mr.assignees)

    def _mentions(self, mr: MergeRequest, note: Note) -> None:
        self.state.mentions.extend(Mention(mr, note, name) for name in notes.mentions(note.body))

    def _merge_request_event(
        self,
        mr: MergeRequest,
        by: User,
        action: str,
        *,
        oldrev: str | None = None,
        changes: payloads.Json | None = None,
    ) -> None:
        body = payloads.merge_request_event(self.url, mr, by, action, oldrev=oldrev, changes=changes)
        self.hooks.fire(mr.project.id, "Merge Request Hook", body)

    def _note_event(self, mr: MergeRequest, note: Note, by: User, action: str) -> None:
        self.hooks.fire(mr.project.id, "Note Hook", payloads.note_event(self.url, mr, note, by, action))
