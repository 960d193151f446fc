"""The HTML of a merge request's page."""

from __future__ import annotations

from datetime import datetime
from html import escape

from tests.support.gitlab.markdown import emoji, to_html
from tests.support.gitlab.state import Environment, MergeRequest, Note, User

_MOST_COMMITS = 20
_DEPLOYED = {
    "running": "Deploying to",
    "success": "Deployed to",
    "failed": "Failed to deploy to",
    "canceled": "Failed to deploy to",
}
STYLE = """
:root { color-scheme: light; --line: #dcdcde; --soft: #737278; --link: #1068bf; }
* { box-sizing: border-box; }
body { margin: 0; font: 14px/1.5 "GitLab Sans", Inter, system-ui, "Segoe UI", Roboto, sans-serif; color: #28272d;
  background: #fff; }
.bar { background: #171321; color: #fff; padding: 10px 24px; font-weight: 600; display: flex; gap: 10px; }
.bar span { font-weight: 400; opacity: .7; }
main { max-width: 990px; margin: 0 auto; padding: 20px 24px 64px; }
.path { color: var(--soft); }
h1 { font-size: 24px; line-height: 1.25; margin: 8px 0; overflow-wrap: anywhere; }
.meta { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; padding-bottom: 16px; color: #535158;
  border-bottom: 1px solid var(--line); }
.badge { border-radius: 12px; padding: 2px 10px; font-weight: 600; color: #fff; }
.opened { background: #108548; } .closed { background: #dd2b0e; } .merged { background: #1f75cb; }
.locked { background: #737278; }
.branch { font: 12px/1.6 "GitLab Mono", "JetBrains Mono", ui-monospace, Menlo, monospace; background: #ececef;
  border-radius: 4px; padding: 1px 6px; overflow-wrap: anywhere; }
.description { padding: 16px 0; border-bottom: 1px solid var(--line); margin-bottom: 20px; }
.description.md { padding: 16px 0; }
.deployed { border: 1px solid var(--line); border-radius: 6px; margin: 14px 0; padding: 10px 16px;
  display: flex; gap: 8px; align-items: center; }
.deployed a { margin-left: auto; color: var(--link); border: 1px solid var(--line); border-radius: 4px;
  padding: 4px 12px; text-decoration: none; }
.commit { margin: 6px 0; }
.commit pre { margin: 4px 0 0; padding: 8px 12px; background: #fbfafd;
  border: 1px solid var(--line); border-radius: 4px;
  font: 12px/1.5 "GitLab Mono", "JetBrains Mono", ui-monospace, Menlo, monospace; white-space: pre-wrap; }
.note { border: 1px solid var(--line); border-radius: 6px; margin: 14px 0 14px 48px; position: relative; }
.note > header { padding: 8px 16px; display: flex; gap: 8px; align-items: baseline; color: var(--soft); }
.note > header b { color: #28272d; }
.note > header a { margin-left: auto; color: var(--soft); text-decoration: none; }
.avatar { position: absolute; left: -48px; top: 4px; width: 32px; height: 32px; border-radius: 50%; color: #fff;
  font-weight: 600; display: grid; place-items: center; background: #6666c4; }
.avatar.bot { background: #c24b38; }
.md { padding: 0 16px 12px; overflow-wrap: break-word; }
.md > :first-child { margin-top: 0; } .md > :last-child { margin-bottom: 0; }
.md h3 { font-size: 17px; margin: 4px 0 12px; }
.md table { border-collapse: collapse; margin: 0 0 16px; width: auto; display: block; overflow-x: auto; }
.md td, .md th { border: 1px solid var(--line); padding: 6px 12px; text-align: left; vertical-align: top; }
.md thead:not(:has(th:not(:empty))) { display: none; }
.md code { font: 12px/1.5 "GitLab Mono", "JetBrains Mono", ui-monospace, Menlo, monospace; background: #ececef;
  border-radius: 4px; padding: 1px 4px; }
.md pre { background: #fbfafd; border: 1px solid var(--line); border-radius: 4px; padding: 10px 12px; overflow: auto; }
.md pre code { background: none; padding: 0; white-space: pre; }
.md blockquote { margin: 0 0 16px; padding: 4px 16px; border-left: 4px solid var(--line); color: #535158; }
.md details { margin: 0 0 12px; } .md summary { cursor: pointer; color: var(--link); }
.md a { color: var(--link); }
.awards { padding: 0 16px 12px; display: flex; gap: 6px; }
.awards span { border: 1px solid var(--line); border-radius: 12px; padding: 1px 10px; }
.thread { border: 1px solid var(--line); border-radius: 6px; margin: 14px 0 14px 48px; background: #fbfafd; }
.thread .note { margin-left: 16px; margin-right: 16px; background: #fff; }
.thread .note:not(:first-child) { margin-left: 64px; }
.thread > footer { padding: 0 16px 12px; color: var(--soft); }
.system { margin: 10px 0 10px 48px; color: var(--soft); } .system b { color: #28272d; }
"""


def render(mr: MergeRequest) -> str:
    """The whole page; every text of a person's is escaped or sanitised."""
    badge = {"opened": "Open", "closed": "Closed", "merged": "Merged"}.get(mr.state, mr.state)
    title, path = escape(mr.title), escape(mr.project.path)
    source = mr.branch if mr.source_project is mr.project else f"{mr.source_project.path}:{mr.branch}"
    description = to_html(mr.description) or "<p class='path'>No description</p>"
    people = "".join(
        f" · {name} <b>{', '.join(escape(person.name) for person in who)}</b>"
        for name, who in (("assigned to", mr.assignees), ("reviewed by", mr.reviewers))
        if who
    )
    notes = "".join(_discussion(notes, mr.author) for notes in mr.discussions)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title} (!{mr.iid}) · {path}</title><style>{STYLE}</style></head><body>
<div class="bar">GitLab <span>stand-in for tests</span></div>
<main><div class="path">{path} / Merge requests / !{mr.iid}</div>
<h1>{title}</h1>
<div class="meta"><span class="badge {escape(mr.state)}">{escape(badge)}</span>
<b>{escape(mr.author.name)}</b> wants to merge <span class="branch">{escape(source)}</span> into
<span class="branch">main</span> · {when(mr.created_at)}{people}</div>
<div class="description md">{description}</div>
{_environments(mr)}
{_commits(mr)}
{notes}
</main></body></html>
"""


def _environments(mr: MergeRequest) -> str:
    """The environments that jobs of the head pipeline name, if its commit is deployed there (with "View app").

    app/models/environment_status.rb, app/models/ci/pipeline.rb: environments_in_self_and_project_descendants
    """
    pipeline = mr.head_pipeline
    if pipeline is None:
        return ""
    named = {job.environment for job in pipeline.jobs if not job.retried}
    deployed = {one.environment: one for one in pipeline.project.deployments.values() if one.sha == pipeline.sha}
    return "".join(
        f'<div class="deployed">{_DEPLOYED[one.status]} <b>{escape(where.name)}</b> {_view(where)}</div>\n'
        for where, one in deployed.items()
        if where.name in named and where.state == "available"
    )


def _view(environment: Environment) -> str:
    url = environment.external_url
    return f'<a href="{escape(url)}" rel="noopener noreferrer nofollow">View app</a>' if web_address(url) else ""


def web_address(url: str) -> bool:
    """Whether it may be linked: what links is not always what ravebot wrote."""
    return url.startswith(("http://", "https://"))


def _commits(mr: MergeRequest) -> str:
    """The commits of the branch with their messages, the newest first."""
    shown: list[str] = []
    facts, sha, ends = mr.source_project.facts, mr.sha, {mr.project.head, ""}
    while sha not in ends and sha in facts and len(shown) < _MOST_COMMITS:
        title, _, body = facts[sha].message.strip().partition("\n")
        more = f"<pre>{escape(body.strip())}</pre>" if body.strip() else ""
        who = f"<b>{escape(facts[sha].author)}</b> · {when(facts[sha].at)}{_statuses(mr, sha)}"
        shown.append(f'<div class="commit"><span class="branch">{sha[:8]}</span> {escape(title)} · {who}{more}</div>')
        sha = facts[sha].parent
    return "\n".join(shown)


def _statuses(mr: MergeRequest, sha: str) -> str:
    """The commit's newest status of each name."""
    newest = {one.name: one for one in mr.project.statuses if one.sha == sha}
    return "".join(
        f' · <span title="{escape(one.description)}">{escape(one.name)}: {escape(one.status)}</span>'
        for one in newest.values()
    )


def _discussion(notes: list[Note], author: User) -> str:
    """A note by itself, or a thread with its replies below the first."""
    shown = [_system(note) if note.system else _note(note, author) for note in notes]
    if not notes[0].in_thread:
        return "".join(shown)
    by = notes[0].resolved_by
    resolved = f"<footer>Resolved by {escape(by.name)}</footer>" if by else ""
    return f'<section class="thread">{"".join(shown)}{resolved}</section>\n'


def _note(note: Note, author: User) -> str:
    role = "Author" if note.author is author else ""
    edited = f" · edited {when(note.edited_at)}" if note.edited_at else ""
    counts: dict[str, int] = {}
    for award in note.awards:
        counts[award.name] = counts.get(award.name, 0) + 1
    awards = "".join(f"<span>{escape(emoji(name))} {count}</span>" for name, count in counts.items())
    initial = escape(note.author.name[:1].upper())
    kind = "avatar bot" if "bot" in note.author.username else "avatar"
    return f"""<article class="note" id="note_{note.id}"><div class="{kind}">{initial}</div>
<header><b>{escape(note.author.name)}</b> @{escape(note.author.username)} · {when(note.created_at)}{edited}
<a href="#note_{note.id}">{role}</a></header>
<div class="md">{to_html(note.body)}</div>{f'<div class="awards">{awards}</div>' if awards else ""}</article>
"""


def _system(note: Note) -> str:
    who = escape(note.author.name)
    return f'<div class="system">● <b>{who}</b> {escape(note.body)} · {when(note.created_at)}</div>\n'


def when(moment: datetime) -> str:
    return f"<time datetime='{moment.isoformat()}'>{moment:%H:%M:%S} UTC</time>"
