"""How agents are reached. Each transport drives one conversation's turns, and reports by `agents.progress`."""
