"""ravebot gives every GitLab merge request an isolated sandbox VM and runs it from Matrix."""
