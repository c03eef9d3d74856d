"""Publish, subscribe and request over NATS (`nats.NatsBus`), or without it in tests (`memory.MemoryBroker`)."""

from libs.bus.api import (
    Bus,
    BusError,
    BusNoResponders,
    BusPayloadTooLarge,
    BusTimeout,
    BusUnavailable,
    Callback,
    Msg,
    Subscription,
)
from libs.bus.config import BusConfig, BusConfigError
from libs.bus.tokens import decode_token, encode_token

__all__ = [
    "Bus",
    "BusConfig",
    "BusConfigError",
    "BusError",
    "BusNoResponders",
    "BusPayloadTooLarge",
    "BusTimeout",
    "BusUnavailable",
    "Callback",
    "Msg",
    "Subscription",
    "decode_token",
    "encode_token",
]
