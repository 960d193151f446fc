"""The door for jobs of GitLab's CI, below /api/v1/ci on `http.listen`: what a merge request's job may ask."""

PREFIX = "/api/v1/ci"
