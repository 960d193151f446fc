"""What people are told when GitLab refuses environments, deployments or commit statuses."""

from __future__ import annotations

from ravebot.errors import Forbidden, NotFound, Unacceptable
from ravebot.sandboxes.environments.plan import Deed

_ROLE = "give its user the role Developer in this project"


def refusal(deed: Deed, error: Forbidden | NotFound) -> str:
    """Cause and mend, in one line."""
    if isinstance(error, Unacceptable):
        return f"GitLab does not take what ravebot asks ({deed.value}): {error}"
    if deed.is_of_status:
        return f"GitLab does not let ravebot set commit statuses here: {_ROLE}"
    if deed in (Deed.CREATE_DEPLOYMENT, Deed.SET_DEPLOYMENT):
        return (
            f"GitLab does not let ravebot record deployments here: {_ROLE}, and let it deploy to protected environments"
        )
    if deed in (Deed.STOP_ENVIRONMENT, Deed.DELETE_ENVIRONMENT):
        return (
            f"GitLab does not let ravebot stop and delete its environments here: {_ROLE}, "
            "or unarchive the project if it is archived"
        )
    return f"GitLab does not let ravebot make environments here: {_ROLE}, and switch on Environments in its settings"


def lasting(why: str) -> str:
    """It was refused for a day and more, and may be for ever."""
    return f"{why} (tried once a day by now, and for a new sandbox)"


def foreign(name: str) -> str:
    """Somebody else made an environment of the name that we would use."""
    return (
        f"this project has an environment {name} that ravebot did not make: delete it on GitLab's environments page, "
        "and ravebot makes its own"
    )
