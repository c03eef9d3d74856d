"""Who is who: identities, their certificates, and what NATS and etcd permit each (design: docs/design/trust.md)."""
