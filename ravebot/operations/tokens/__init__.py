"""Tokens for the API: made, listed and revoked at the shell, through the running bot."""
