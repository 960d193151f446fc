"""Who gets in: `rules` is the contract, `nftables/` fulfils it, `guard` keeps it true; `probes` ask a guest."""
