from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.model import yamltext
from libs.model.yamltext import MAX_NODES
from services.calicoctl.documents import Broken, Document, FileProblem
from services.calicoctl.files import parse, read_all


def only(text: str, source: str = "f.yaml") -> Document:
    (found,) = parse(text, source)
    assert isinstance(found, Document), found
    return found


def broken(text: str, source: str = "f.yaml") -> Broken:
    (found,) = parse(text, source)
    assert isinstance(found, Broken), found
    return found


def test_documents_are_numbered_and_know_their_lines() -> None:
    first, second = parse("# heading\n---\nkind: A\n---\n# empty\n---\n\nkind: B\nmetadata:\n  name: b\n", "f.yaml")
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert (first.number, first.where()) == (1, "f.yaml: document 1, line 3")
    assert second.where("metadata.name") == "f.yaml: document 2, line 10, column 3"


def test_a_field_that_is_not_there_is_placed_at_its_parent() -> None:
    document = only("kind: A\nspec:\n  ingress:\n  - action: Allow\n")
    assert document.position("spec.ingress[0].source.nets[1]").line == 4
    assert document.position("metadata.name").line == 1


def test_a_document_that_cannot_be_read_does_not_spoil_the_next() -> None:
    one, two, three = parse("kind: A\n---\nkind: [\n---\nkind: C\n", "f.yaml")
    assert isinstance(one, Document)
    assert isinstance(two, Broken)
    assert isinstance(three, Document)
    assert str(two).startswith("f.yaml: document 2, line 3: not valid YAML: ")
    assert three.number == 3


def test_wrong_indentation_is_told_with_line_and_column() -> None:
    problem = broken("kind: A\nspec:\n  a: 1\n b: 2\n")
    assert (problem.position.line, problem.position.column) == (4, 2)


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "x: {a: 1, a: 2}\n", '{"a": 1, "a": 2}'])
def test_duplicate_keys_are_refused(text: str) -> None:
    assert "field 'a' is given twice" in broken(text).message


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("22:53", "22:53"),
        ("1:20", "1:20"),
        ("11:22:33:44:55:06", "11:22:33:44:55:06"),
        ("2026-01-02", "2026-01-02"),
        ("2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        ("fd00::1", "fd00::1"),
        ("10.0", 10.0),
        ("8080", 8080),
        ("0x1f", 31),
        ("010", 8),
        ("0o17", 15),
        ("08", "08"),
        ("1e3", 1000.0),
        ("1_000", "1_000"),
        ("'8080'", "8080"),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("", None),
        ("!!str 5", "5"),
    ],
)
def test_plain_values_mean_what_go_makes_of_them(written: str, meant: object) -> None:
    assert only(f"kind: A\nx: {written}\n").value["x"] == meant


def test_keys_stay_as_written() -> None:
    assert only("kind: A\nlabels: {on: a, 80: b, true: c}\n").value["labels"] == {"on": "a", "80": "b", "true": "c"}


def test_anchors_and_merge_keys_work() -> None:
    document = only("base: &b {x: 1, y: 2}\nkind: A\nspec:\n  <<: *b\n  y: 3\n")
    assert document.value["spec"] == {"x": 1, "y": 3}


def test_an_alias_in_itself_is_refused() -> None:
    assert "may not contain itself" in broken("a: &a [*a]\n").message


def test_aliases_of_aliases_do_not_fill_the_memory() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert f"more than {MAX_NODES} values" in broken("\n".join(lines)).message


@pytest.mark.parametrize("text", ["a: !!python/object/apply:os.system [id]\n", "a: !mine 1\n", "a: !!binary aGk=\n"])
def test_tags_that_make_objects_are_refused(text: str) -> None:
    assert "is not supported" in broken(text).message


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    assert isinstance(broken("[" * 5000 + "]" * 5000), Broken)


def test_json_is_accepted_with_tabs_and_several_values() -> None:
    one, two = parse('{\n\t"kind": "A"\n}\n{"kind": "B"}', "f.json")
    assert isinstance(one, Document)
    assert isinstance(two, Document)
    assert (two.number, two.start.line) == (2, 4)


def test_bad_json_is_told_with_its_place() -> None:
    problem = broken('{"kind": "A",\n  "x" 1}', "f.json")
    assert (problem.position.line, problem.position.column) == (2, 7)
    assert "not valid JSON" in problem.message


def test_flow_style_yaml_that_begins_like_json_is_yaml() -> None:
    assert only("{kind: A, x: 1}\n").value == {"kind": "A", "x": 1}


@pytest.mark.parametrize(
    "text",
    [
        "kind: List\nitems:\n- kind: A\n- kind: B\n",
        "- kind: A\n- kind: B\n",
        '[{"kind": "A"}, {"kind": "B"}]',
    ],
)
def test_lists_are_taken_apart(text: str) -> None:
    found = list(parse(text, "f"))
    assert [doc.value["kind"] for doc in found if isinstance(doc, Document)] == ["A", "B"]
    assert [doc.item for doc in found if isinstance(doc, Document)] == [1, 2]


def test_items_of_a_typed_list_may_leave_out_their_kind() -> None:
    document = only("kind: TierList\nitems:\n- metadata:\n    name: a\n")
    assert document.value["kind"] == "Tier"
    assert document.where("metadata.name") == "f.yaml: document 1 item 1, line 4, column 5"


def test_an_item_that_is_no_mapping_is_told_alone() -> None:
    one, two = parse("kind: List\nitems:\n- 5\n- kind: B\n", "f.yaml")
    assert isinstance(one, Broken)
    assert isinstance(two, Document)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n---\n", "kind: List\nitems: []\n"])
def test_nothing_is_no_document(text: str) -> None:
    assert list(parse(text, "f.yaml")) == []


def test_a_document_that_is_text_is_refused() -> None:
    assert "expected a resource" in broken("just words\n").message


def test_a_block_scalar_may_hold_indented_dashes() -> None:
    assert only("kind: A\nx: |\n  ---\n  y\n").value["x"] == "---\ny\n"


def write(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_directory_gives_its_resource_files_by_name(tmp_path: Path) -> None:
    write(tmp_path, "b.yml", "kind: B\n")
    write(tmp_path, "a.yaml", "kind: A\n")
    write(tmp_path, "c.json", '{"kind": "C"}')
    write(tmp_path, "notes.txt", "kind: [")
    write(tmp_path, "sub/d.yaml", "kind: D\n")

    def kinds(recursive: bool) -> list[object]:
        found = read_all([str(tmp_path)], recursive=recursive, skip_empty=False)
        return [doc.value["kind"] for doc in found if isinstance(doc, Document)]

    assert kinds(recursive=False) == ["A", "B", "C"]
    assert kinds(recursive=True) == ["A", "B", "C", "D"]


def test_files_without_resources_are_an_error_unless_skipped(tmp_path: Path) -> None:
    write(tmp_path, "empty.yaml", "# nothing\n")
    with pytest.raises(FileProblem, match="No resources specified in file"):
        read_all([str(tmp_path / "empty.yaml")], recursive=False, skip_empty=False)
    assert read_all([str(tmp_path / "empty.yaml")], recursive=False, skip_empty=True) == []
    (tmp_path / "empty.yaml").unlink()
    with pytest.raises(FileProblem, match="No resources specified in directory"):
        read_all([str(tmp_path)], recursive=False, skip_empty=False)


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="No such file"):
        read_all([str(tmp_path / "none.yaml")], recursive=False, skip_empty=False)
    (tmp_path / "binary.yaml").write_bytes(b"kind: \xff\xfe")
    with pytest.raises(FileProblem, match="not UTF-8"):
        read_all([str(tmp_path / "binary.yaml")], recursive=False, skip_empty=False)


def test_a_dash_is_standard_input() -> None:
    (found,) = read_all(["-"], recursive=False, skip_empty=False, stdin=io.StringIO("kind: A\n"))
    assert isinstance(found, Document)
    assert found.source == "-"


LINES = st.lists(
    st.sampled_from(
        ["kind: Tier", "metadata: {name: a}", "- a", "  - b: [1, 2]", "x: 22:53", "y: 0x1f", "z: 1e3", "k: |", "  text",
         "  b: &a {c: d}", "  e: *a", "# comment", "'q': \"\\u00e9\"", "m: !!binary x", "\tt: 1", "- - - c", "? k\n: v",
         "<<: {p: q}", "n: ~", "é: ü", "l: >-", "a: b: c", "]", "u: \"open", "%YAML 1.1", "w: 2026-01-02", "s: -.5"]
    ),
    min_size=1, max_size=7,
)  # fmt: skip


@given(LINES)
def test_the_fast_reader_says_what_the_slow_one_says(lines: list[str]) -> None:
    """Values, places of fields and messages: which of both read a text is nothing that anybody can see."""
    text = "\n".join(lines) + "\n"
    fast = list(parse(text, "f.yaml"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(yamltext, "_shallow", lambda _text: False)
        slow = list(parse(text, "f.yaml"))
    assert [str(one) for one in fast] == [str(one) for one in slow]
    for one, other in zip(fast, slow, strict=True):
        if isinstance(one, Document):
            assert isinstance(other, Document)
            assert (one.value, one.marks, one.start) == (other.value, other.marks, other.start)


@pytest.mark.parametrize("deep", ["[" * 50_000, "- " * 50_000, "? " * 50_000, "{a: " * 50_000])
def test_text_without_end_of_nesting_is_refused_and_kills_nothing(deep: str) -> None:
    (found,) = parse(f"kind: Tier\nspec: {deep}" if deep[0] in "[{" else deep, "f.yaml")
    assert isinstance(found, Broken)
