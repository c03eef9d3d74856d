"""BGP messages as bytes: pure, no sockets, no clocks. Octets in, values or `BgpError` out, and back."""
