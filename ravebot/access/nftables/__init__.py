"""The firewall: nftables tables, policy routing rules and traffic filters. `firewall` fulfils the contract.

`nft` runs the commands; `ruleset` says what is written, `reading` and `snapshot` what is there, `counts` and `visits`
who connected, `conflicts` which rules of others are in the way, `ingress` what holds while the tables are flushed.
"""
