"""What programs and agents can have ravebot do: one table of tools, for the API and MCP alike.

May import commands and agents, and no door: `web/api/` turns requests into calls of tools.
"""
