"""Handles the inbox: checks permissions for the requests of GitLab and Matrix, carries them out, and replies.

May import the store, the domain and the pure parts and clients of `gitlab` and `matrix`.
"""
