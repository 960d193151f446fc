"""GitLab's rules for what is inside a note: quick actions are run and taken out, mentions are told.

https://docs.gitlab.com/user/project/quick_actions/ and https://docs.gitlab.com/user/discussions/#mentions
"""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markdown_it.token import Token

QUICK_ACTIONS = frozenset(
    re.findall(
        r"\w+",
        """
        add_contacts approve assign assign_reviewer award blocked_by blocks cc clear_health_status
        clear_weight clone close confidential convert_to_ticket copy_metadata create_merge_request done
        draft due duplicate epic estimate health_status invite_email iteration label link lock merge
        milestone move page promote promote_to_incident publish react ready reassign reassign_reviewer
        rebase relabel relate remove_assignee remove_contacts remove_due_date remove_epic
        remove_estimate remove_milestone remove_parent remove_time_spent remove_zoom reopen
        request_changes request_review reviewer severity ship shrug spend spent submit_review subscribe
        tableflip tag target_branch title todo unapprove unassign unassign_reviewer unlabel unlink
        unlock unsubscribe weight zoom
        """,
    )
)
_COMMAND = re.compile(r"\s*/([a-z_]+)(?:[ \t]+(.*))?\s*", re.IGNORECASE)
_MENTION = re.compile(r"(?<![\w`./@-])@([A-Za-z0-9_](?:[A-Za-z0-9_./-]*[A-Za-z0-9_])?)")
# `reference_pattern` of GitLab's models and of its integrations with issue trackers, in its `app/models`.
_REFERENCE = re.compile(
    r"""
    [0-9a-fA-F]{7,}                                     # commit, and the ends of a range of commits
    | [#!$%~&^][\w"]                                    # issue, merge request, snippet, milestone, label, epic, alert
    | \[[a-z_]+:[\w./-]+\]                              # [issue:1], [vulnerability:1] and the like
    | GL-\d                                             # issue and work item
    | [\w.-]+/[\w.-]+>                                  # project
    | \b[A-Za-z][A-Za-z0-9_]*-\d                        # Jira, YouTrack, Linear, ZenTao
    | \bCU-[A-Za-z0-9] | \bT\d                          # ClickUp, Phorge
    """,
    re.VERBOSE,
)
_AUTOLINK = re.compile(r"www\.|[a-z][a-z0-9+.-]*://|[\w.+-]@[\w-]|\b(?:mailto|xmpp):\w", re.IGNORECASE)

parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def take_quick_actions(body: str) -> tuple[str, list[tuple[str, str]]]:
    """The body without its quick actions, and those. Lines in code are left alone; any other is looked at.

    More is taken than GitLab takes (a line may be indented or stand in a quote): whoever passes here passes there.
    """
    code_lines = _code_lines(body)
    kept: list[str] = []
    found: list[tuple[str, str]] = []
    for number, line in enumerate(re.split(r"\r\n|[\n\r\v\f\x85\u2028\u2029]", body)):
        match = _COMMAND.fullmatch(line.lstrip("> \t"))
        if number not in code_lines and match and match[1].lower() in QUICK_ACTIONS:
            found.append((match[1].lower(), match[2] or ""))
        else:
            kept.append(line)
    return "\n".join(kept).strip() if found else body, found


def _code_lines(body: str) -> set[int]:
    lines: set[int] = set()
    for token in parser.parse(body):
        if token.type in {"fence", "code_block"} and token.map:
            lines.update(range(*token.map))
    return lines


def mentions(body: str) -> list[str]:
    """Every name after an `@` in the rendered text, code left out, whether or not there is such a user."""
    return [name for text in _texts(parser.parse(body)) for name in _MENTION.findall(text)]


def links(body: str) -> list[str]:
    """What GitLab makes a link of in the rendered text, code left out, whether or not there is such an object.

    Bare addresses: the extended autolinks of GitHub's Markdown and of any scheme (https://github.github.com/gfm/).
    """
    texts = _texts(parser.parse(body))
    return [match[0] for text in texts for pattern in (_REFERENCE, _AUTOLINK) for match in pattern.finditer(text)]


def _texts(tokens: list[Token]) -> list[str]:
    """Runs of text as GitLab's reference filter sees them: inline elements break a run, escapes do not."""
    texts: list[str] = []
    for token in tokens:
        if token.type == "inline":
            run = ""
            for child in token.children or []:
                if child.type in {"text", "text_special"}:
                    run += child.content
                else:
                    texts.append(run)
                    run = ""
                    texts.extend(_texts(child.children or []))
            texts.append(run)
        elif token.type == "html_block":
            texts.append(re.sub(r"<!--.*?-->|<[^>]*>", " ", token.content, flags=re.DOTALL))
    return texts
