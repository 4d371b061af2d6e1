"""Chat templates: written as Hugging Face's libraries would, by programs that are trusted with nothing."""

from typing import Any

import pytest

from gateway.dialects.template import Template, TemplateError
from gateway.errors import CallerError


def template(source: str, **special: str) -> Template:
    return Template(source, special, lambda form: f"now as {form}")


def user(content: str = "Hi.") -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def test_the_answer_is_left_to_be_written() -> None:
    source = "{{ messages[0].content }}{% if add_generation_prompt %}<assistant>{% endif %}"
    assert template(source).render(user()) == "Hi.<assistant>"


def test_blocks_leave_no_whitespace() -> None:
    source = "{% for m in messages %}\n  {% if true %}\n[{{ m.role }}]\n  {% endif %}\n{% endfor %}\n"
    assert template(source).render(user()) == "[user]\n"


def test_special_tokens_are_known_and_can_not_be_replaced() -> None:
    made = template("{{ bos_token }}{{ messages[0].content }}", bos_token="<s>")
    assert made.render(user(), {"bos_token": "x", "messages": []}) == "<s>Hi."


def test_helpers_that_templates_expect_are_there() -> None:
    source = (
        "{% generation %}{{ {'a': '<é>'} | tojson }}{% endgeneration %}{{ strftime_now('%Y') }}"
        "{% for m in messages %}{% break %}{% endfor %}"
    )
    assert template(source).render(user()) == '{"a": "<é>"}now as %Y'


def test_what_it_looks_at_is_known() -> None:
    source = "{{ bos_token }}{% set x = tools %}{% if enable_thinking %}{{ strftime_now('') }}{{ x }}{% endif %}"
    assert template(source, bos_token="<s>").variables == {"enable_thinking"}


def test_what_a_template_will_not_write_is_the_callers_and_its_words_are_kept_back() -> None:
    made = template(
        "{% if messages[0].content == 'bad' %}{{ raise_exception('no ' ~ messages[0].content) }}{% endif %}"
    )
    with pytest.raises(CallerError) as refused:
        made.render(user("bad"))
    assert (refused.value.param, refused.value.code) == ("messages", "invalid_messages")
    assert "bad" not in refused.value.message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}{{ messages.__class__.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ cycler.__init__.__globals__.os.popen('true') }}",
        "{% include 'x' %}",
        "{{ nothing.at.all }}",
    ],
)
def test_a_template_that_reaches_for_more_is_told_at_the_start(source: str) -> None:
    with pytest.raises(TemplateError):
        template(source)


def test_a_template_that_does_not_compile_is_told_with_its_line() -> None:
    with pytest.raises(TemplateError, match="line 2"):
        template("\n{% if %}")
