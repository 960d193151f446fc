"""The database: the only place with SQL. One module per table family; each function runs inside a transaction.

May import the domain's model, `clock` and `errors`; nothing else of ravebot.
"""
