"""The speaker's tables: Adj-RIB-In, Loc-RIB with the decision process, Adj-RIB-Out by update groups. `rib.Rib` is the
door."""
