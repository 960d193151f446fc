"""The Matrix adapter: reads messages and commands; sends cards, threads and replies."""
