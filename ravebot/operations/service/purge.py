"""What `ravebot uninstall --purge` removes beyond this host's files; each step is one row."""

from __future__ import annotations

from collections.abc import Sequence

from ravebot.config.file import LoadedConfig
from ravebot.errors import Unavailable
from ravebot.operations.service.uninstall import PurgeStep, Say
from ravebot.store.database import instance_id_path


def steps(loaded: LoadedConfig) -> tuple[PurgeStep, ...]:
    """The steps of that installation, in their order: what needs the database comes first."""
    config = loaded.config
    if not instance_id_path(config.state_dir).exists():
        return ()  # it never ran
    return (
        PurgeStep(
            f"the sandboxes, machines, network, storage pool and firewall of the instance {config.instance}",
            lambda say: _host(loaded, say),
        ),
    )


def kept(loaded: LoadedConfig) -> tuple[str, ...]:
    """What the installation made or used and what stays all the same, with the reason."""
    provider = loaded.config.provider
    return (
        f"{provider.image}: the machines' image, which ravebot did not make for itself",
        f"{provider.storage_pool}: the folder of the machines' disks, which libvirt made; it is empty then",
        "the webhooks in GitLab: remove them in each project under Settings, Webhooks",
    )


async def _host(loaded: LoadedConfig, say: Say) -> Sequence[str]:
    from ravebot.operations.cleanup import cleanup

    report = await cleanup(loaded, None, everything=True, force=True, adopt=False, progress=say)
    if report.failed or report.kept:
        raise Unavailable("; ".join((*report.failed, *report.kept)))
    return (*report.machines, *report.volumes, *report.addresses, *report.shared)
