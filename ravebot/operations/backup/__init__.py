"""Backups of the state: one file with the database, the instance id and the Matrix login, and how it is put back.

The configuration and its secret files are not part of it.
"""
