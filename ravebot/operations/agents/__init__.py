"""The shell's view of agents: `ravebot agent …` and `ravebot approvals …`, and what they ask of the running bot."""
