"""ravebot as a service of the host: what is installed, how it is installed and how it is removed.

`layout` is the one table of all that is installed; `install` and `uninstall` go through it.
"""
