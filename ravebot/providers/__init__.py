"""The parts that run machines. `base` is the contract, `guest` has checks for all guests; each folder is one provider.

Only `app` picks one. `memory` is for tests, and the one to read before writing another.
"""
