"""The gateway to models: an agent in a sandbox uses a model without its key, within what its running turn may.

`gateway` is entered by what opens sandboxes' doors; the modules beside it check requests and count what was used.
"""
