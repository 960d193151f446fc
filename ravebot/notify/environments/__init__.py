"""Lets GitLab show each sandbox as an environment with deployments and as a commit status; in a lane of its own."""
