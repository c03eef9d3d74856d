from __future__ import annotations

from typing import Any

import pytest

from libs import model
from services.calicoctl.gotemplate import TemplateProblem, read

POOL = model.IPPool(
    metadata=model.ObjectMeta(name="p", labels={"b": "2", "a": "1"}),
    spec=model.IPPoolSpec(cidr="10.0.0.0/8", nat_outgoing=True, allowed_uses=["Workload", "Tunnel"]),
)
TIER = model.Tier(metadata=model.ObjectMeta(name="t"), spec=model.TierSpec(order=1e6))


def render(template: str, data: Any = POOL) -> str:
    return read(template, "64512").render(data)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain", "plain"),
        ("{{.ObjectMeta.Name}} {{.Name}} {{.Kind}} {{.APIVersion}}", "p p IPPool projectcalico.org/v3"),
        ("{{.Spec.CIDR}} {{.Spec.NATOutgoing}}", "10.0.0.0/8 true"),
        ("{{.Spec.BlockSize}} {{.Spec.AssignmentMode}} {{not 0}}", "0 <nil> true"),
        ("{{.Spec.AllowedUses}} {{.Labels}}", "[Workload Tunnel] map[a:1 b:2]"),
        ('{{join .Spec.AllowedUses ","}} {{join .Labels ";"}}', "Workload,Tunnel a=1;b=2"),
        ('{{joinAndTruncate .Spec.AllowedUses "," 9}}', "Worklo..."),
        ("{{range .Spec.AllowedUses}}<{{.}}>{{end}}", "<Workload><Tunnel>"),
        ("{{range $i, $u := .Spec.AllowedUses}}{{$i}}={{$u}} {{end}}", "0=Workload 1=Tunnel "),
        ("{{range $k, $v := .Labels}}{{$k}}{{$v}}{{end}}", "a1b2"),
        ("{{range .Finalizers}}x{{else}}none{{end}}", "none"),
        ("{{range .Spec.AllowedUses}}{{.}}{{break}}{{end}}", "Workload"),
        ('{{range .Spec.AllowedUses}}{{if eq . "Workload"}}{{continue}}{{end}}{{.}}{{end}}', "Tunnel"),
        ("{{if .Spec.Disabled}}a{{else if .Spec.NATOutgoing}}b{{else}}c{{end}}", "b"),
        ("{{if .Spec.Disabled}}a{{else}}c{{end}}", "c"),
        ("{{with .Spec}}{{.CIDR}}{{$.Name}}{{end}}", "10.0.0.0/8p"),
        ("{{with .Finalizers}}a{{else}}{{.Name}}{{end}}", "p"),
        ("{{$x := .Name}}{{$x}}{{$x = .Kind}}{{$x}}", "pIPPool"),
        ('{{.Name | printf "%-3s|%q" .Kind}}', 'IPPool|"p"'),
        ('{{printf "%03d %.1f %v %% %x" 7 2.55 true 255}}', "007 2.5 true % ff"),
        ("{{len .Spec.AllowedUses}}{{index .Spec.AllowedUses 1}}{{index .Labels \"a\"}}", "2Tunnel1"),
        ("{{eq 1 2 1}} {{ne 1 2}} {{lt 1 2}} {{ge 1 2}} {{and 1 0}} {{or 0 3}}", "true true true false 0 3"),
        ("{{(index .Spec.AllowedUses 0)}} {{len (index .Spec.AllowedUses 1)}}", "Workload 6"),
        ("a {{- /* gone */ -}} b", "ab"),
        ("a\n  {{- .Name -}}  \nb", "apb"),
        ('{{"}}"}} {{`a"b`}}', '}} a"b'),
        ('{{print 1 "a"}}{{println "b" true}}', "1ab true\n"),
        ('{{config "asnumber"}}', "64512"),
        ("{{range 3}}{{.}}{{end}}", "012"),
    ],
)  # fmt: skip
def test_renders_as_go_does(template: str, expected: str) -> None:
    assert render(template) == expected


def test_floats_print_as_go_prints_them() -> None:
    assert render("{{.Spec.Order}}", TIER) == "1e+06"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{.Name", "unclosed action"),
        ("{{if .Name}}x", "{{end}} is missing"),
        ("x{{end}}", "unexpected {{end}}"),
        ("{{if .Name}}{{else}}{{else}}{{end}}", "expected {{end}}"),
        ("{{colour .Name}}", 'function "colour" not defined'),
        ("{{.Colour}}", "can't evaluate field Colour in type IPPool"),
        ("{{.Name.First}}", "can't evaluate field First in type str"),
        ("{{.Spec.AssignmentMode.X}}", "nil pointer"),
        ("{{$x}}", "undefined variable"),
        ("{{$x = 1}}", "undefined variable"),
        ("{{index .Spec.AllowedUses 9}}", "error calling index"),
        ("{{lt 1 `a`}}", "error calling lt"),
        ("{{.Name .Kind}}", "can't give argument to non-function"),
        ("{{define `x`}}{{end}}", "not supported"),
        ("{{range .Name}}{{end}}", "can't iterate over"),
        ("{{break}}", "outside of"),
        ("{{}}", "missing value"),
        ("{{(.Name}}", "unclosed ("),
        ("{{.Name)}}", "unexpected )"),
        ("{{ ^ }}", "unexpected '^'"),
        ('{{config "colour"}}', "unknown setting"),
        ("{{join}}", "error calling join"),
        ("{{if}}{{end}}", "missing value"),
    ],
)
def test_what_does_not_fit_is_told(template: str, message: str) -> None:
    with pytest.raises(TemplateProblem) as caught:
        render(template)
    assert message in str(caught.value)
