"""Coding agents: conversations between people and agents, their turns, and what agents ask people to allow.

May import the domain, the store and `commands`. How an agent is reached is in `transports`.
"""
