"""The door for programs: REST and MCP from one table of tools, on `api.listen`, and MCP on sandboxes' own sockets.

May import `ravebot.tools`, which does everything; here requests are read, limited and answered.
"""
