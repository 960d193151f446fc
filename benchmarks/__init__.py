"""Measures what the README quotes, on real parts, with throwaway ones of their own: `./dev bench`."""
