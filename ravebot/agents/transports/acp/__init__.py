"""Agents in sandboxes that speak the Agent Client Protocol on standard input and output, reached by SSH.

https://agentclientprotocol.com; version 1. Everything that comes from the guest is untrusted.
"""

from ravebot.agents.transports.acp.driver import AcpDriver

__all__ = ["AcpDriver"]
