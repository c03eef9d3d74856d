"""The trouble that MemoryBroker makes on demand."""

from __future__ import annotations

from random import Random

import pytest

from libs.bus.memory import Delivery, Fault, MemoryBroker


def manual() -> tuple[MemoryBroker, list[bytes]]:
    broker = MemoryBroker(manual=True)
    got: list[bytes] = []
    broker.connect("reader").subscribe("t.>", lambda message: got.append(message.data))
    return broker, got


def send(broker: MemoryBroker, *payloads: bytes) -> None:
    bus = broker._clients.get("writer") or broker.connect("writer")
    for data in payloads:
        bus.publish("t.x", data)


def is_payload(data: bytes) -> Fault:
    def when(delivery: Delivery) -> bool:
        return delivery.data == data

    return Fault(when)


def test_nothing_arrives_before_it_is_delivered_by_hand() -> None:
    broker, got = manual()
    send(broker, b"1", b"2")
    assert got == []
    assert broker.run_until_idle() == 2
    assert got == [b"1", b"2"]


def test_dropped_duplicated_and_held_back() -> None:
    broker, got = manual()
    drop, double, late = is_payload(b"drop"), is_payload(b"double"), is_payload(b"late")
    drop.drop, double.copies, late.hold_back = True, 1, 2
    broker.faults += [drop, double, late]
    send(broker, b"late", b"1", b"drop", b"double", b"2", b"3")
    broker.run_until_idle()
    assert sorted(got) == sorted([b"late", b"1", b"double", b"double", b"2", b"3"])
    assert got.index(b"late") >= 2


def test_held_back_message_comes_when_nothing_later_does() -> None:
    broker, got = manual()
    broker.faults.append(Fault(lambda delivery: True, hold_back=100))
    send(broker, b"1")
    broker.run_until_idle()
    assert got == [b"1"]


def test_fault_counts_its_times() -> None:
    broker, got = manual()
    broker.faults.append(Fault(lambda delivery: True, drop=True, times=2))
    send(broker, b"1", b"2", b"3")
    broker.run_until_idle()
    assert got == [b"3"]


def test_shuffle_loses_nothing() -> None:
    broker, got = manual()
    broker.shuffle = Random(3)
    sent = [b"%d" % number for number in range(50)]
    send(broker, *sent)
    broker.run_until_idle()
    assert got != sent
    assert sorted(got) == sorted(sent)


def test_slow_reader_is_told_and_does_not_get_the_message() -> None:
    broker, got = manual()
    lost: list[str] = []
    broker._clients["reader"].on_slow_consumer.append(lost.append)
    broker.faults.append(Fault(lambda delivery: True, slow=True, times=1))
    send(broker, b"1", b"2")
    broker.run_until_idle()
    assert (got, lost) == ([b"2"], ["t.x"])


def test_disconnected_reader_misses_what_was_on_its_way_and_hooks_fire() -> None:
    broker, got = manual()
    events: list[str] = []
    reader = broker._clients["reader"]
    reader.on_disconnect.append(lambda: events.append("down"))
    reader.on_reconnect.append(lambda: events.append("up"))
    send(broker, b"1")
    broker.disconnect("reader")
    broker.disconnect("reader")
    send(broker, b"2")
    broker.reconnect("reader")
    broker.reconnect("reader")
    send(broker, b"3")
    broker.run_until_idle()
    assert got == [b"3"]
    assert events == ["down", "up"]


def test_endless_conversation_is_found() -> None:
    broker = MemoryBroker(manual=True)
    bus = broker.connect("echo")
    bus.subscribe("t", lambda message: bus.publish("t", message.data))
    bus.publish("t", b"1")
    with pytest.raises(RuntimeError, match="never gets idle"):
        broker.run_until_idle(limit=100)


def test_failing_callback_fails_the_test_that_delivers_by_hand() -> None:
    broker = MemoryBroker(manual=True)
    bus = broker.connect("fails")
    bus.subscribe("t", lambda message: 1 / 0)  # type: ignore[arg-type,return-value]
    bus.publish("t", b"1")
    with pytest.raises(ZeroDivisionError):
        broker.run_until_idle()


def test_name_is_taken_until_closed() -> None:
    broker = MemoryBroker()
    broker.connect("a")
    with pytest.raises(ValueError, match="connected already"):
        broker.connect("a")
