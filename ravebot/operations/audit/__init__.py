"""The event log as the shell shows it, checks it and exports it."""
