"""The firewall: nftables tables, policy routing rules and traffic filters. `firewall` implements the contract.

`nft` runs the commands; `ruleset` is what we write, `reading` and `snapshot` read it back; `counts` and `visits` are
the access audit; `conflicts` finds others' rules that drop our traffic; `routing` and `ingress` protect the host while
the tables are flushed.
"""
