"""The domain: what sandboxes and machines are, what is decided about them, and the loop that carries it out.

`model`, `decide`, `transitions`, `naming`, `view` and `pool.plan` are pure and import nothing of ravebot outside
this folder but `errors` and `clock`; the rest besides may use `store`, `config` and the contracts in `providers.base`
and `access`. No adapter (libvirt, nftables, GitLab, Matrix, HTTP) may be imported here.
"""
