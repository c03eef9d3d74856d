"""How a service of a node follows typha (docs/design/distribution.md): `feed` decides, `runner` talks to the bus."""
