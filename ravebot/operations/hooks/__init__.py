"""The webhooks of the configured projects: shown, registered and removed."""
