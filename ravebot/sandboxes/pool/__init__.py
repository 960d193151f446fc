"""The pool's loop and its actions: compare what should be with what is, and take one step for each machine.

`plan` is pure: who gets a machine now, and who waits.
"""
