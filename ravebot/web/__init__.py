"""HTTP servers: webhook, health and metrics on the network; the admin socket for the shell."""
