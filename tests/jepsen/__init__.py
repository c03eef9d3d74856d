"""Many client processes, a real etcd cluster that breaks, and a verdict from what was promised and what is stored.

`docs/design/ipam-proof.md` says what is run and what came out.
"""
