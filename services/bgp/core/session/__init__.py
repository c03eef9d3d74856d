"""The session with one peer, without sockets or clocks: what happens and the time go in, actions come out."""
