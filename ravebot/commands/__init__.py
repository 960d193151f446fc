"""What people may ask for, whoever hears it: the verbs, how a merge request is named, who may, and what then happens.

May import the domain and the store, and no adapter. Rooms, comments and the shell are doors to it.
"""
