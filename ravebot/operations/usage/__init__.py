"""What was used: added up by project, person, agent and week."""
