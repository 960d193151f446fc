"""`ravebot init`: asks what an installation needs, tests each answer at once, and writes it all at the end."""
