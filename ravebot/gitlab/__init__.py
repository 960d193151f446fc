"""The GitLab adapter: webhooks and API answers in; notes and emoji out."""
