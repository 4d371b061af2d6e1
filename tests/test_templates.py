"""What a model brings beside its weights: read from a Hugging Face folder, or from a template alone."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from gateway.templates import TemplateError, load

TINY = Path(__file__).parent / "real" / "tiny-qwen2"
SAID = [{"role": "user", "content": "Hi."}]


def write(folder: Path, **files: object) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def test_a_real_folder_writes_and_counts() -> None:
    template = load(TINY)
    assert template.render(SAID) == "<|im_start|>userHi.<|im_end|><|im_start|>assistant"
    assert template.count is not None
    assert template.count("<|im_start|>") == 1
    assert template.count("") == 0


def test_a_template_alone_writes_and_does_not_count() -> None:
    template = load(TINY / "chat_template.jinja")
    assert template.render(SAID).startswith("<|im_start|>user")
    assert template.count is None


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template__jinja": "own", "tokenizer_config__json": {"chat_template": "older"}},
        {"chat_template__json": {"chat_template": "own"}},
        {"tokenizer_config__json": {"chat_template": "own"}},
        {
            "tokenizer_config__json": {
                "chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "own"}]
            }
        },
    ],
)
def test_a_folder_has_its_template_in_one_of_four_places(tmp_path: Path, files: dict[str, object]) -> None:
    assert load(write(tmp_path, **files)).render(SAID) == "own"


def test_special_tokens_are_texts_or_objects(tmp_path: Path) -> None:
    config = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "pad_token": None}
    source = "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}"
    write(tmp_path, chat_template__jinja=source, tokenizer_config__json=config)
    write(tmp_path, special_tokens_map__json={"unk_token": "<unk>", "eos_token": "older"})
    assert load(tmp_path).render(SAID) == "<s></s><unk>"


def test_a_template_may_ask_for_the_date(tmp_path: Path) -> None:
    write(tmp_path, t__jinja="{{ strftime_now('%d %B %Y') }}")
    assert load(tmp_path / "t.jinja", lambda: datetime(2026, 1, 2)).render(SAID) == "02 January 2026"  # noqa: DTZ001


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "no chat template"),
        ({"tokenizer_config__json": "{"}, "tokenizer_config.json is not a JSON object"),
        ({"tokenizer_config__json": "[]"}, "tokenizer_config.json is not a JSON object"),
        ({"chat_template__jinja": "{% if %}"}, "line 1"),
        ({"chat_template__jinja": "x", "tokenizer__json": "{}"}, "tokenizer.json is not a tokenizer"),
    ],
)
def test_what_is_missing_or_broken_is_told_in_one_line(tmp_path: Path, files: dict[str, object], told: str) -> None:
    with pytest.raises(TemplateError, match=told) as failed:
        load(write(tmp_path, **files))
    assert "\n" not in str(failed.value)


def test_a_path_at_which_there_is_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="cannot be read"):
        load(tmp_path / "nothing")
    (tmp_path / "bytes.jinja").write_bytes(b"\xff")
    with pytest.raises(TemplateError, match="not UTF-8"):
        load(tmp_path / "bytes.jinja")
