"""What `ravebot uninstall` removes beyond the files of this host; each step is one row."""

from __future__ import annotations

from collections.abc import Sequence

from ravebot.config.file import LoadedConfig
from ravebot.config.model import Config
from ravebot.errors import RavebotError, Unavailable
from ravebot.operations.service.uninstall import RemovalStep, Say, StepOutcome
from ravebot.store.database import instance_id_path


def steps(loaded: LoadedConfig) -> tuple[RemovalStep, ...]:
    """The steps of that installation, in their order."""
    config = loaded.config
    found: list[RemovalStep] = []
    if config.http.public_url is not None:
        what = f"the webhooks to {config.http.public_url} in {', '.join(config.gitlab.projects)}"
        found.append(RemovalStep(what, lambda say: _webhooks(loaded, say)))
    if instance_id_path(config.state_dir).exists():  # else it never ran
        what = f"the sandboxes, machines, network, storage pool and firewall of the instance {config.instance}"
        found.append(RemovalStep(what, lambda say: _host(loaded, say)))
        found.append(RemovalStep("the environments of its sandboxes in GitLab", lambda say: _environments(loaded, say)))
    return tuple(found)


def kept(config: Config) -> tuple[str, ...]:
    """What the installation made or used and what stays all the same, with the reason.

    What is in the state folder stays or goes with it.
    """
    provider = config.provider
    reasons = {
        provider.image: "the machines' image, which other installations may use",
        **dict.fromkeys(provider.images.values(), "an image for machines, which other installations may use"),
        provider.storage_pool: "the folder of the machines' disks, which libvirt made; it is empty then",
    }
    if provider.pipeline_images is not None:
        reasons[config.pipeline_images] = "the images that pipelines built; remove it by hand if no ravebot uses it"
    return tuple(f"{path}: {why}" for path, why in reasons.items() if not path.is_relative_to(config.state_dir))


async def _webhooks(loaded: LoadedConfig, say: Say) -> StepOutcome:
    from ravebot.operations.hooks import registry

    removed: list[str] = []
    left: list[str] = []
    try:
        states = await registry.remove(loaded, say=lambda state: say(f"{state.project}: {state.detail}"))
    except RavebotError as error:  # GitLab may be gone, or its token revoked: that must not keep the rest for good
        advice = "remove them in each project under Settings, Webhooks"
        return StepOutcome([], [f"the webhooks in {', '.join(loaded.config.gitlab.projects)}: {error}; {advice}"])
    for state in states:
        if not state.ok:
            left.append(f"the webhook of {state.project}: {state.sentence}")
        elif state.changed:
            removed.append(f"the webhook of {state.project}")
    return StepOutcome(removed, left)


async def _environments(loaded: LoadedConfig, say: Say) -> StepOutcome:
    from ravebot.operations.environments import remove_environments

    return StepOutcome(*await remove_environments(loaded, say))


async def _host(loaded: LoadedConfig, say: Say) -> StepOutcome:
    from ravebot.operations.cleanup import cleanup

    report = await cleanup(loaded, None, everything=True, force=True, adopt=False, progress=say)
    problems: Sequence[str] = (*report.failed, *report.kept)
    if problems:
        raise Unavailable("; ".join(problems))
    ended = [f"the sandbox {one}" for one in report.ended]
    return StepOutcome([*ended, *report.machines, *report.volumes, *report.addresses, *report.shared], [])
