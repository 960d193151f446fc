"""Delivery of the outbox: what was committed is told, in order, however long the far end is away.

May import the store, the domain and the rendering and clients of `gitlab` and `matrix`.
"""
