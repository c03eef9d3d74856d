from __future__ import annotations

import pytest

from services.calicoctl.columns import BY_KIND, Resource, UnknownHeading, go_float, join, rows, text
from services.calicoctl.documents import Json
from services.calicoctl.output import Answer, Format, OutputProblem, boxed, exported, parse_format, render, table

TIER: Resource = {"kind": "Tier", "metadata": {"name": "default"}, "spec": {"order": 1000000}}


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"), (10, "10"), (10.5, "10.5"), (-3.25, "-3.25"), (999999, "999999"), (1e6, "1e+06"), (1e7, "1e+07"),
        (1234567, "1.234567e+06"),
        (1.5e21, "1.5e+21"), (0.0001, "0.0001"), (0.00001, "1e-05"), (123456.789, "123456.789"),
        (1e100, "1e+100"), (0.1 + 0.2, "0.30000000000000004"),
    ],
)  # fmt: skip
def test_floats_print_as_go_prints_them(number: float, shown: str) -> None:
    assert go_float(number) == shown


def test_values_print_as_go_templates_print_them() -> None:
    assert text(None) == "<nil>"
    assert text(True) == "true"
    assert text([1, "a"]) == "[1 a]"
    assert text({"b": 1, "a": [True]}) == "map[a:[true] b:1]"


def test_long_joined_lists_are_cut() -> None:
    nets: list[Json] = [f"10.0.{n}.0/24" for n in range(20)]
    assert len(join(nets, 80)) == 80
    assert join(nets, 80).endswith("...")
    assert join(nets[:2], 80) == "10.0.0.0/24,10.0.1.0/24"
    assert join({"b": 1, "a": 2}) == "a=2,b=1"
    assert join(None) == ""


def test_every_heading_of_every_table_has_a_cell() -> None:
    for kind, columns in BY_KIND.items():
        for heading in (*columns.normal, *columns.wide):
            assert heading in columns.cells, (kind, heading)


@pytest.mark.parametrize("kind", BY_KIND)
def test_an_empty_resource_has_a_row(kind: str) -> None:
    (_, row) = rows(kind, [{"metadata": {"name": "x"}}], None, wide=True, namespace=True, as_number="64512")
    assert "x" in row


def test_unknown_columns_are_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownHeading, match="Unknown heading COLOUR, valid values are: NAME, ORDER"):
        rows("Tier", [TIER], ("NAME", "COLOUR"), wide=False, namespace=False, as_number="")


def test_tables_pad_every_column_by_three_and_to_five() -> None:
    assert table([["A", "LONGER"], ["1", "2"]]) == "A    LONGER   \n1    2        \n"


def test_frames() -> None:
    assert boxed([["A", "N"], ["x", "10"], ["yy", "5"]], right=frozenset({1})) == (
        "+----+----+\n| A  | N  |\n+----+----+\n| x  | 10 |\n| yy |  5 |\n+----+----+\n"
    )
    assert boxed([["A"]]) == "+---+\n| A |\n+---+\n"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("ps", Format("ps")),
        ("wide", Format("wide")),
        ("yml", Format("yaml")),
        ("custom-columns=name, order", Format("ps", ("NAME", "ORDER"))),
    ],
)
def test_formats(given: str, meant: Format) -> None:
    assert parse_format(given) == meant


@pytest.mark.parametrize("given", ["", "xml", "custom-columns=", "custom-columns", "yaml=x"])
def test_unknown_formats_are_refused(given: str) -> None:
    with pytest.raises(OutputProblem):
        parse_format(given)


def test_one_resource_is_itself_a_list_is_a_list_several_are_a_sequence() -> None:
    one = Answer("Tier", [TIER])
    listed = Answer("Tier", [TIER, TIER], revision=7)
    assert render([one], Format("yaml"), namespace=False, as_number="").startswith("kind: Tier\n")
    assert "kind: TierList\nmetadata:\n  resourceVersion: '7'\n" in render(
        [listed], Format("yaml"), namespace=False, as_number=""
    )
    assert render([one, one], Format("yaml"), namespace=False, as_number="").startswith("- kind: Tier\n")
    assert render([one, one], Format("name"), namespace=False, as_number="") == "tier.projectcalico.org/default\n" * 2


def test_several_resources_of_a_kind_share_a_table() -> None:
    shown = render([Answer("Tier", [TIER]), Answer("Tier", [TIER])], Format("ps"), namespace=False, as_number="")
    assert shown == "NAME      ORDER   \ndefault   1e+06   \ndefault   1e+06   \n\n"


def test_export_leaves_out_what_belongs_to_one_cluster() -> None:
    metadata: dict[str, Json] = {"name": "x", "namespace": "n", "uid": "u", "resourceVersion": "5", "labels": {}}
    metadata["creationTimestamp"] = "t"
    assert exported({"kind": "Tier", "metadata": metadata})["metadata"] == {"name": "x", "labels": {}}
