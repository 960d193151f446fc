"""Metrics for Prometheus: what happened, and what runs now."""

from ravebot.web.metrics.metrics import CONTENT_TYPE, Metrics

__all__ = ["CONTENT_TYPE", "Metrics"]
