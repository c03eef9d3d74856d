"""Go's text/template, as far as `-o go-template=` is used: to pick values out of resources.

There: text and trim markers, comments, pipelines, variables, if/else, range/else, with, break, continue, the
comparison and logic functions, len, index, print, printf, println, slice-free indexing, and calicoctl's own join,
joinAndTruncate and config. Not there: define, template, block, method calls, complex numbers. What is missing is
refused when the template is read.

Fields go by their Go names (`.Spec.NATOutgoing`, `.ObjectMeta.Name`); they are found by comparing with our JSON names
without regard to case, and those of the embedded metadata also directly (`.Name`). A field that the kind does not have
is an error, one that is not set has its zero value, as in Go.
"""

from services.calicoctl.gotemplate.functions import TemplateProblem
from services.calicoctl.gotemplate.render import Template, read

__all__ = ["Template", "TemplateProblem", "read"]
