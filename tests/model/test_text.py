"""Text to tokens and back: pieces of whole characters, stop strings across pieces, chat templates, missing files."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import pytest

from cutpq.checkpoint.errors import CheckpointError
from cutpq.model.text import UNKNOWN, Detokenizer, NoTokenizerError, StopStrings, Tokenizer

TINY_LLAMA = Path(__file__).resolve().parents[1] / "data" / "tiny-llama"
HARD = "naïve café — 日本語 🎉👩‍👩‍👧 e\u0301 \U0001f1eb\U0001f1f7 end"

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(TINY_LLAMA)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory) -> Tokenizer:
    """As Llama 2's: a space is a part of the word behind it, the first one is dropped, bytes are tokens."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, normalizers

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁Hello", "▁wor", "ld", "a"]
    merges: list[tuple[str, str]] = []
    fast = Fast(models.BPE({w: i for i, w in enumerate(words)}, merges, byte_fallback=True, unk_token="<unk>"))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    folder = tmp_path_factory.mktemp("sentencepiece")
    fast.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def pieces_of(tokenizer: Tokenizer, tokens: list[int], prompt: list[int]) -> list[str]:
    pieces = Detokenizer(tokenizer.decode, prompt)
    return [*(pieces.add(token) for token in tokens), pieces.end()]


def test_pieces_are_whole_characters(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(HARD)
    assert len(tokens) > len(HARD)  # some characters take several tokens
    pieces = pieces_of(tokenizer, tokens, [])
    assert UNKNOWN not in "".join(pieces)
    assert "".join(pieces) == HARD
    assert pieces[-1] == ""
    assert len([piece for piece in pieces if piece]) > 20  # and they come while the text is made


def test_a_text_that_ends_within_a_character(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("ok 日")
    whole = "".join(pieces_of(tokenizer, tokens, []))
    cut = "".join(pieces_of(tokenizer, tokens[:-1], []))
    assert (whole, cut) == ("ok 日", "ok ")


def test_a_prompt_that_ends_within_a_character(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("ok 日本")
    for cut in range(1, len(tokens)):
        text = "".join(pieces_of(tokenizer, tokens[cut:], tokens[:cut]))
        assert tokenizer.decode(tokens[:cut]).rstrip(UNKNOWN) + text == "ok 日本"


def test_random_tokens_give_the_text_of_all_of_them(tokenizer: Tokenizer) -> None:
    """Bytes that are no characters among them: what is incomplete at the end is all that may be missing."""
    for seed in range(200):
        chance = random.Random(seed)
        tokens = [chance.randrange(3, 1024) for _ in range(chance.randrange(1, 30))]
        cut = chance.randrange(0, 5)
        before = tokenizer.decode(tokens[:cut]).rstrip(UNKNOWN)
        text = before + "".join(pieces_of(tokenizer, tokens[cut:], tokens[:cut]))
        assert text == tokenizer.decode(tokens).rstrip(UNKNOWN), f"seed {seed}"


def test_characters_of_byte_tokens(sentencepiece: Tokenizer) -> None:
    """Its decoder makes no character of a run of bytes that ends within one: those before must have been given out."""
    for seed in range(200):
        chance = random.Random(seed)
        text = "a" + "".join(chance.choices(HARD, k=12))
        tokens = sentencepiece.encode(text)
        assert "".join(pieces_of(sentencepiece, tokens, [])) == text, f"seed {seed}"
        cut = chance.randrange(1, len(tokens))
        shown = "".join(pieces_of(sentencepiece, tokens[:cut], []))
        assert text.startswith(shown), f"seed {seed}"
        assert UNKNOWN not in shown


def test_spaces_between_words_stay(sentencepiece: Tokenizer) -> None:
    """Each word alone would lose its space."""
    hello, wor, ld = 260, 261, 262
    assert sentencepiece.decode([hello, wor, ld]) == "Hello world"
    assert pieces_of(sentencepiece, [wor, ld, hello], [hello]) == [" wor", "ld", " Hello", ""]


def until_stop(text: str, strings: list[str]) -> str:
    """The definition: the text before the string that ends first, and of those the longest."""
    ends = [(text.find(s) + len(s), text.find(s)) for s in strings if s in text]
    return text[: min(ends)[1]] if ends else text


def test_stop_strings_across_pieces() -> None:
    for seed in range(2000):
        chance = random.Random(seed)
        text = "".join(chance.choices("ab\n", k=chance.randrange(0, 20)))
        strings = ["".join(chance.choices("ab\n", k=chance.randrange(1, 6))) for _ in range(chance.randrange(1, 4))]
        stop, given, rest = StopStrings(strings), "", text
        while rest:
            size = chance.randrange(1, 8)
            given, rest = given + stop.add(rest[:size]), rest[size:]
            assert until_stop(text, strings).startswith(given), f"seed {seed}: given too early"
        assert (stop.met is not None) == any(s in text for s in strings), f"seed {seed}"
        assert given + stop.end() == until_stop(text, strings), f"seed {seed}"


def test_text_is_held_no_longer_than_it_can_be_a_stop_string() -> None:
    stop = StopStrings(["END"])
    assert [stop.add("x E"), stop.add("N"), stop.add("o"), stop.add("END"), stop.add("more")] == [
        "x ",
        "",
        "ENo",
        "",
        "",
    ]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="a stop string must not be empty"):
        StopStrings(["a", ""])


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}\n<|{{ m['role'] }}|> {{ m['content'] | tojson }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def with_config(folder: Path, **config: object) -> Tokenizer:
    shutil.copy(TINY_LLAMA / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer(folder)


def test_chat_templates(tmp_path: Path) -> None:
    """As a string, as one of several, as a file of its own; with special tokens as text and as an object."""
    pytest.importorskip("jinja2")
    want = '<s><|user|> "hé \\"you\\""\n<|assistant|>'
    tokenizer = with_config(tmp_path, chat_template=TEMPLATE, bos_token="<s>")
    tokens = tokenizer.encode_chat('hé "you"')
    assert tokens[0] == 0  # <s> once, as the token that it is
    assert tokenizer.decode(tokens) == want.removeprefix("<s>")
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    assert with_config(tmp_path, chat_template=named, bos_token={"content": "<s>"}).encode_chat('hé "you"') == tokens
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    assert with_config(tmp_path, chat_template="old", bos_token="<s>").encode_chat('hé "you"') == tokens


def test_a_template_brings_its_own_first_token(tmp_path: Path) -> None:
    """A tokenizer that puts <s> before every text does not put a second one before a rendered template."""
    pytest.importorskip("jinja2")
    from tokenizers import processors

    tokenizer = with_config(tmp_path, chat_template=TEMPLATE, bos_token="<s>")
    tokenizer._fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert tokenizer.encode("hi")[:1] == [0]
    assert tokenizer.encode_chat("hi").count(0) == 1


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, r"tokenizer_config\.json: expected a chat_template, found none: leave --chat away"),
        ("{% for %}", r"the chat template cannot be rendered: Expected"),
        ("{{ raise_exception('no system role') }}", "cannot be rendered: no system role"),
        ("{{ messages.append(1) }}", "cannot be rendered: .*safe"),
    ],
)
def test_bad_chat_templates(template: str | None, said: str, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    tokenizer = with_config(tmp_path, **({} if template is None else {"chat_template": template}))
    with pytest.raises(CheckpointError, match=said):
        tokenizer.encode_chat("hello")


def test_folders_without_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoTokenizerError, match=r"has no tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: expected a tokenizer"):
        Tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(NoTokenizerError, match=r"needs the package tokenizers: pip install 'cutpq\[text\]'"):
        Tokenizer(TINY_LLAMA)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "jinja2.sandbox", None)
    with pytest.raises(NoTokenizerError, match="chat templates need the package jinja2"):
        Tokenizer(TINY_LLAMA).encode_chat("x")
