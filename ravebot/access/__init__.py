"""Access to sandboxes: the contract (`rules`), its implementation (`nftables/`), `guard`, and checks of ports."""
