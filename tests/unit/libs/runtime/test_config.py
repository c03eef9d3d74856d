"""Settings: where a value comes from, what it may be, and what the user reads when it is wrong."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from libs.runtime.config import ConfigError, RuntimeConfig, describe, load, required, setting, settings_of
from libs.runtime.redact import Secret


class Mode(enum.StrEnum):
    CROSS_SUBNET = "CrossSubnet"
    NEVER = "Never"


@dataclass(frozen=True, kw_only=True)
class Example(RuntimeConfig):
    env_prefix: ClassVar[str] = "EXAMPLE_"

    endpoints: tuple[str, ...] = setting(("http://a:1",), "Where the store is.", env=("ENDPOINTS",))
    period_s: float = setting(90.0, "How often, 100% of the time.", unit="s", minimum=0, maximum=600)
    mode: Mode = setting(Mode.NEVER, "Which mode.")
    backend: Literal["nft", "bpf"] = setting("nft", "Which dataplane.")
    on: bool = setting(False, "Whether.")
    router_id: IPv4Address | None = setting(None, "Identity.", env=("CALICO_ROUTER_ID",))
    address: IPv4Address | IPv6Address | None = setting(None, "Either family.")
    nets: tuple[IPv4Network, ...] = setting((), "Networks.")
    password: Secret = setting(Secret(""), "Of the store.", env=("STORE_PASSWORD",))


@dataclass(frozen=True, kw_only=True)
class Strict:
    node: str = required("Name of this node.", env=("NODENAME",))


def get(argv: list[str] | None = None, environ: dict[str, str] | None = None) -> Example:
    return load(Example, argv or [], environ or {}, prog="example")


def problems(argv: list[str] | None = None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        get(argv, environ)
    return caught.value.problems


def test_flag_wins_over_environment_wins_over_file_wins_over_default(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("period_s: 1\n")
    from_file = ["--config", str(file)]
    assert get().period_s == 90
    assert get(from_file).period_s == 1
    assert get(from_file, {"EXAMPLE_PERIOD_S": "2"}).period_s == 2
    assert get([*from_file, "--period-s", "3"], {"EXAMPLE_PERIOD_S": "2"}).period_s == 3
    assert get([], {"CALICO_CONFIG": str(file)}).period_s == 1


def test_first_name_of_the_environment_wins_and_an_empty_one_is_not_set() -> None:
    assert get(environ={"ENDPOINTS": "x", "EXAMPLE_ENDPOINTS": "y"}).endpoints == ("x",)
    assert get(environ={"ENDPOINTS": "", "EXAMPLE_ENDPOINTS": "y"}).endpoints == ("y",)
    assert get(environ={"ENDPOINTS": ""}).endpoints == ("http://a:1",)


def test_prefixed_names_are_read_in_any_case_as_felix_does_and_others_are_not() -> None:
    assert get(environ={"EXAMPLE_HealthPort": "9099"}).health_port == 9099
    assert get(environ={"example_healthport": "9099"}).health_port == 9099
    assert get(environ={"endpoints": "x"}).endpoints == ("http://a:1",)


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["--endpoints", "http://a:1, http://b:2"], "endpoints", ("http://a:1", "http://b:2")),
        (["--period-s", "1m30s"], "period_s", 90.0),
        (["--period-s", "250ms"], "period_s", 0.25),
        (["--period-s=.5"], "period_s", 0.5),
        (["--mode", "crosssubnet"], "mode", Mode.CROSS_SUBNET),
        (["--backend", "BPF"], "backend", "bpf"),
        (["--on"], "on", True),
        (["--on=false"], "on", False),
        (["--no-on"], "on", False),
        (["--router-id", "10.0.0.1"], "router_id", IPv4Address("10.0.0.1")),
        (["--router-id", "none"], "router_id", None),
        (["--address", "fd00::1"], "address", IPv6Address("fd00::1")),
        (["--nets", "10.0.0.0/8,192.168.0.0/16"], "nets", (IPv4Network("10.0.0.0/8"), IPv4Network("192.168.0.0/16"))),
        (["--health-port", "0x10"], "health_port", 16),
        (["--log-file", "/tmp/x"], "log_file", Path("/tmp/x")),
    ],
)
def test_texts_are_read_by_the_type_of_their_field(argv: list[str], field: str, value: object) -> None:
    assert getattr(get(argv), field) == value


@pytest.mark.parametrize(
    ("argv", "environ", "sentence"),
    [
        (["--period-s", "soon"], {}, "--period-s on the command line: 'soon' is not a number of seconds or duration"),
        (["--period-s", "1m30"], {}, "is not a number of seconds"),
        (["--period-s", "nan"], {}, "is not a number of seconds"),
        (["--period-s", "-1"], {}, "-1 is below the minimum of 0"),
        (["--period-s", "11m"], {}, "660 is above the maximum of 600"),
        ([], {"EXAMPLE_HEALTHPORT": "x"}, "EXAMPLE_HEALTHPORT in the environment: 'x' is not a whole number"),
        ([], {"EXAMPLE_HEALTHPORT": "70000"}, "above the maximum of 65535"),
        (["--mode", "always"], {}, "'always' is not one of CrossSubnet, Never"),
        (["--backend", "ipt"], {}, "'ipt' is not one of nft, bpf"),
        (["--on", "maybe"], {}, "'maybe' is neither true nor false"),
        (["--router-id", "fd00::1"], {}, "'fd00::1' is not IPv4Address"),
        (["--address", "here"], {}, "'here' is not IPv4Address or IPv6Address"),
        (["--nets", "10.0.0.1/8"], {}, "has host bits set"),
        (["--perid-s", "1"], {}, "command line: unrecognized arguments: --perid-s 1"),
        (["--period", "1"], {}, "unrecognized arguments"),  # no abbreviations: a new flag must not change an old line
        (["--config", "/nowhere.yaml"], {}, "/nowhere.yaml: cannot be read"),
    ],
)
def test_errors_name_the_source_and_say_what_is_wrong(argv: list[str], environ: dict[str, str], sentence: str) -> None:
    assert len(problems(argv, environ)) == 1
    assert sentence in problems(argv, environ)[0]


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("perod_s: 1\nmode: [Never]\nhealthPort: 1\nhealth-port: 2\n")
    told = "\n".join(problems(["--config", str(file), "--period-s", "x"], {"EXAMPLE_ON": "?"}))
    assert "no such setting: perod_s; did you mean period_s?" in told
    assert f"mode in {file}: expected CrossSubnet|Never, found list" in told
    assert "health_port is given twice" in told
    assert "--period-s on the command line" in told
    assert "EXAMPLE_ON in the environment" in told


def test_file_may_be_json_with_any_spelling_of_names_and_native_types(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"healthPort": 1, "on": true, "endpoints": ["a", "b"], "period-s": 0.5, "router_id": null}')
    config = get(["--config", str(file)])
    assert (config.health_port, config.on, config.endpoints, config.period_s) == (1, True, ("a", "b"), 0.5)
    file.write_text("")
    assert get(["--config", str(file)]) == get()
    file.write_text("- a")
    assert "expected a mapping" in problems(["--config", str(file)])[0]
    file.write_text("a: [")
    assert "cannot be read" in problems(["--config", str(file)])[0]


def test_required_setting_names_every_place_where_it_can_be_given() -> None:
    with pytest.raises(ConfigError, match="node is not set: give one of --node, NODENAME"):
        load(Strict, [], {}, prog="strict")
    assert load(Strict, [], {"NODENAME": "n1"}, prog="strict").node == "n1"


def test_secrets_have_no_flag_and_show_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    config = get(environ={"STORE_PASSWORD": "correct horse"})
    assert config.password.reveal() == "correct horse"
    assert "correct horse" not in repr(config) + str(config) + repr(describe(config)) + f"{config.password}"
    assert describe(config)["password"] == "***"
    for argv in (["--password", "correct horse"], ["--password=correct horse"]):
        assert problems(argv) == [
            "command line: --password is a secret: set STORE_PASSWORD or EXAMPLE_PASSWORD instead"
        ]
    with pytest.raises(SystemExit):
        get(["--help"])
    assert "STORE_PASSWORD" in capsys.readouterr().out


def test_credentials_in_urls_are_masked_in_descriptions_and_errors() -> None:
    config = get(["--endpoints", "nats://user:pw@host:4222"])
    assert describe(config)["endpoints"] == "nats://***@host:4222"
    assert "pw" not in problems(["--period-s", "nats://user:pw@host"])[0]


def test_help_has_sentence_default_unit_and_environment_of_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        get(["--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--period-s S How often, 100% of the time. [default 90 s] [env EXAMPLE_PERIOD_S]" in text
    assert "--mode CROSSSUBNET|NEVER Which mode. [default Never]" in text
    for row in settings_of(Example):
        assert row.sentence
        assert row.sentence in text


def test_rows_for_the_reference_page() -> None:
    rows = {row.name: row for row in settings_of(Example)}
    assert rows["health_port"].env == ("EXAMPLE_HEALTHPORT", "EXAMPLE_HEALTH_PORT")
    assert (rows["period_s"].unit, rows["period_s"].default, rows["period_s"].flag) == ("s", "90", "--period-s")
    assert rows["endpoints"].type_name == "list of text"
    assert settings_of(Strict)[0].default is None
