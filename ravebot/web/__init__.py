"""The HTTP faces: webhook, health and metrics for the network; the admin socket for the shell."""
