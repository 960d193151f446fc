"""Acts on the inbox: what GitLab and Matrix asked of us, checked against who may, turned into intents and answers.

May import the store, the domain and the pure parts and clients of `gitlab` and `matrix`.
"""
