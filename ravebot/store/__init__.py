"""The database: the only place with SQL. One module a table family; each function works inside a transaction.

May import the domain's model, `clock` and `errors`; nothing else of ravebot.
"""
