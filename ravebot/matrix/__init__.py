"""Matrix's side: sync and commands in; cards, threads and replies out."""
