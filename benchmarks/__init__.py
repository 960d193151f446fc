"""Measures speed and use of resources on real, throwaway parts: `./dev bench`."""
