"""Delivery of the outbox, in order, for as long as it takes."""
