"""Who gets in: the firewall (nftables), SSH keys, readiness probes."""
