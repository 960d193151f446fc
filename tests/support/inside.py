"""Runs a command as root inside a stage's guest without ravebot, as a hostile guest might."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import libvirt
import libvirt_qemu


def inside(machine: str, command: str, timeout: float = 20) -> tuple[int, str]:
    """Exit code and output of a shell command in the guest, through its agent."""
    connection = libvirt.open("qemu:///system")
    try:
        domain = connection.lookupByName(machine)
        arguments = {"path": "/bin/sh", "arg": ["-c", f"{command} 2>&1"], "capture-output": True}
        pid = _ask(domain, "guest-exec", arguments)["pid"]
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            status = _ask(domain, "guest-exec-status", {"pid": pid})
            if status["exited"]:
                output = base64.b64decode(status.get("out-data", "")).decode(errors="replace")
                return status.get("exitcode", -1), output
            time.sleep(0.1)
    finally:
        connection.close()
    raise TimeoutError(f"{command} in {machine} did not end within {timeout} s")


def _ask(domain: libvirt.virDomain, command: str, arguments: dict[str, object]) -> dict[str, Any]:
    text = json.dumps({"execute": command, "arguments": arguments})
    answer: dict[str, Any] = json.loads(libvirt_qemu.qemuAgentCommand(domain, text, 10, 0))["return"]
    return answer
