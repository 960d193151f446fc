"""Commands, the same at every door: the verbs, references to merge requests, permissions, and execution.

May import the domain and the store, and no adapter. Rooms, comments and the shell are doors to it.
"""
