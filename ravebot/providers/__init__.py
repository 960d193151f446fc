"""What runs machines. `base` is the contract and `guest` what holds for every guest; each folder is one provider.

Only `app` picks one. `memory` is for tests, and the one to read before writing another.
"""
