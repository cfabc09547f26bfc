"""Templates that would hang, flood or leave their sandbox are refused before anybody is served."""

import pytest

from modelwright.errors import CheckpointError
from modelwright.serving.template_trial import try_template
from tests.server.models import TEMPLATE

MARKS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "no template may"),
        ("{% for i in range(10**9) %}{% endfor %}", "no template may"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% set x = i * j %}{% endfor %}{% endfor %}", "1 s"),
        ("{% for i in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "1048576 characters"),
        ("{{ 'x' * 10**11 }}", "no template may"),
    ],
    ids=["classes", "range", "loops", "flood", "memory"],
)
def test_row_37_what_no_template_may_do_is_refused(template, said):
    with pytest.raises(CheckpointError, match=said):
        try_template(template, MARKS)


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        "{{ raise_exception('only users') }}",
        "{{ messages[0].nothing.more }}",
        "{% generation %}{{ strftime_now('%d') }}{% endgeneration %}{{ tools | tojson }}",
    ],
    ids=["template", "refuses", "undefined", "extensions"],
)
def test_what_templates_do_is_allowed(template):
    try_template(template, MARKS)
