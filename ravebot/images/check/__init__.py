"""`ravebot image check`: boots an image as the provider would, and says what of the guest contract it meets.

The contract is one table, in `contract`. docs/image.md explains it to people who make images.
"""
