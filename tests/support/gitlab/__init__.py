"""A GitLab for tests and the demo: stateful, on loopback, behaving as GitLab's documentation says.

Nothing here knows ravebot. Start with `GitLabServer`; `python -m tests.support.gitlab` runs one by itself.
"""

from tests.support.gitlab.hooks import Attempt, Hook
from tests.support.gitlab.pipelines import Job, Pipeline
from tests.support.gitlab.server import GitLabServer
from tests.support.gitlab.state import (
    DEVELOPER,
    GUEST,
    MAINTAINER,
    REPORTER,
    MergeRequest,
    Note,
    Project,
    User,
)

__all__ = [
    "DEVELOPER", "GUEST", "MAINTAINER", "REPORTER",
    "Attempt", "GitLabServer", "Hook", "Job", "MergeRequest", "Note", "Pipeline", "Project", "User",
]  # fmt: skip
