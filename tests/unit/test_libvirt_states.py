"""What libvirt's states mean to the pool."""

from __future__ import annotations

import libvirt
import pytest

from ravebot.providers.libvirt.domains import observed, pause_reason
from ravebot.sandboxes.model import Observed


@pytest.mark.parametrize(
    ("state", "reason", "meaning"),
    [
        (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_BOOTED, Observed.AGENT_SILENT),
        (libvirt.VIR_DOMAIN_BLOCKED, 0, Observed.AGENT_SILENT),
        (libvirt.VIR_DOMAIN_SHUTDOWN, libvirt.VIR_DOMAIN_SHUTDOWN_USER, Observed.AGENT_SILENT),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR, Observed.PAUSED),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP, Observed.AGENT_SILENT),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_CRASHED, Observed.CRASHED),
        (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED, Observed.OFF),
        (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, Observed.CRASHED),
        (libvirt.VIR_DOMAIN_CRASHED, libvirt.VIR_DOMAIN_CRASHED_PANICKED, Observed.CRASHED),
        (libvirt.VIR_DOMAIN_NOSTATE, 0, Observed.UNKNOWN),
        (99, 0, Observed.UNKNOWN),
    ],
)
def test_every_state_has_a_meaning_and_an_unheard_one_is_unknown(state: int, reason: int, meaning: Observed) -> None:
    assert observed(state, reason) is meaning


def test_only_a_pause_has_a_reason() -> None:
    assert pause_reason(libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR) == "ioerror"
    assert pause_reason(libvirt.VIR_DOMAIN_PAUSED, 99) == "unknown"
    assert pause_reason(libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED_IOERROR) == ""
