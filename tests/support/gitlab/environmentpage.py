"""The HTML of a project's environments page: what is there, where it links to, and the button that stops it."""

from __future__ import annotations

from html import escape

from tests.support.gitlab.page import STYLE, web_address, when
from tests.support.gitlab.state import Environment, Project

_STYLE = """
.environment { border: 1px solid var(--line); border-radius: 6px; margin: 14px 0; padding: 12px 16px; }
.environment header { display: flex; gap: 10px; align-items: center; }
.environment header b { font-size: 16px; } .environment form { margin-left: auto; }
.environment a, .environment button { font: inherit; color: var(--link); border: 1px solid var(--line);
  background: #fff; border-radius: 4px; padding: 4px 12px; text-decoration: none; cursor: pointer; }
.environment button { color: #dd2b0e; }
.available { background: #108548; } .stopped, .stopping { background: #737278; }
.success { background: #108548; } .failed { background: #dd2b0e; } .running { background: #1f75cb; }
.canceled { background: #737278; }
.deployment { margin: 8px 0 0; color: #535158; }
"""


def render_environments(project: Project, only: int | None = None) -> str:
    """The whole page, or that of one environment; every text is escaped."""
    shown = [one for one in project.environments.values() if only in (None, one.id)]
    items = "".join(map(_environment, shown)) or "<p class='path'>There are no environments.</p>"
    path = escape(project.path)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Environments · {path}</title><style>{STYLE}{_STYLE}</style></head><body>
<div class="bar">GitLab <span>stand-in for tests</span></div>
<main><div class="path">{path} / Operate / Environments</div>
<h1>Environments</h1>
{items}
</main></body></html>
"""


def _environment(what: Environment) -> str:
    web = what.external_url if web_address(what.external_url) else ""
    link = f'<a href="{escape(web)}" rel="noopener noreferrer nofollow">Open</a>' if web else ""
    action = f"/{escape(what.project.path)}/-/environments/{what.id}/stop"
    stop = f'<form method="post" action="{action}"><button>Stop</button></form>' if what.state == "available" else ""
    deployments = [one for one in what.project.deployments.values() if one.environment is what]
    listed = "".join(
        f'<div class="deployment"><span class="badge {escape(one.status)}">{escape(one.status)}</span> #{one.iid} '
        f'<span class="branch">{escape(one.sha[:8])}</span> on <span class="branch">{escape(one.ref)}</span> '
        f"by {escape(one.user.name)} · {when(one.created_at)}</div>"
        for one in reversed(deployments)
    )
    return f"""<section class="environment" id="environment_{what.id}">
<header><b>{escape(what.name)}</b> <span class="badge {escape(what.state)}">{escape(what.state)}</span>
<span class="path">{escape(what.tier)}</span> {link}{stop}</header>{listed or "<p class='path'>No deployments.</p>"}
</section>"""
