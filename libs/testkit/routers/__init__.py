"""Real routing daemons as peers in tests, behind one class, and a speaker driven by hand for what no daemon would send.

`model` says what a router is to do and what it learned, `peer` what every daemon can be asked, `bird`, `frr`, `gobgp`,
`exabgp` and `ours` are the daemons, `raw` speaks BGP octet by octet, `lab` lays the network under all of them.
"""
