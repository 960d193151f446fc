"""ravebot gives every GitLab merge request an isolated sandbox VM and runs it from Matrix."""

__version__ = "0.1.0"
