"""Delivers the outbox to Matrix and GitLab, in order, and retries for as long as they are away.

May import the store, the domain and the rendering and clients of `gitlab` and `matrix`.
"""
