"""Guides: outputs of random logits that match, end, and say why they cannot be followed."""

import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modelwright import zoo
from modelwright.engine import guide as guides
from modelwright.engine.guide import GuideCompiler
from modelwright.engine.noise import sample_key
from modelwright.engine.params import Guide, SamplingParams
from modelwright.engine.sample_row import SampleRow, TokenGuide
from modelwright.engine.sampling import NO_TOKEN, sample
from modelwright.errors import GuideError, RequestError
from modelwright.processing import parse_grounding_report
from tests.engine.test_bounded import burn, wait_until_none_is_left

NANO = AutoTokenizer.from_pretrained(zoo.path("vl2-nano"))
END = NANO.eos_token_id
PROMPT = NANO.encode("Answer:", add_special_tokens=False)
PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Bob"]}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


@pytest.fixture(scope="module")
def compiler() -> GuideCompiler:
    return GuideCompiler(NANO, [END])


def draw(guide: TokenGuide, seed: int, prompt: list[int] = PROMPT, most: int = 200, **params) -> list[int]:
    """An output of random logits over a vocabulary that is padded beyond the tokenizer's, up to its end."""
    tokens = list(prompt)
    row = SampleRow(SamplingParams(**params), tokens, len(prompt), sample_key(seed), frozenset({END}), guide=guide)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(most):
        if guide.ended(tokens):
            break
        token = int(sample(torch.randn(1, len(NANO) + 9, generator=generator), [row]).tokens)
        if token in (END, NO_TOKEN):
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_schema_is_kept_to(compiler, temperature):
    people = set()
    for seed in range(8):
        follower = compiler.start(Guide(json_schema=PERSON), len(PROMPT))
        person = json.loads(NANO.decode(draw(follower, seed, temperature=temperature)))
        assert list(person) == ["name", "age"] and person["name"] in ("Ann", "Bob") and 1 <= person["age"] <= 99
        people.add(tuple(person.values()))
    assert len(people) > 2


@pytest.mark.parametrize("pattern", [r"[0-9]{3}-[a-f]{2}", r"(yes|no)!", r"[你好🙂]{2}"])
def test_an_expression_is_matched_as_a_whole_and_ends(compiler, pattern):
    for seed in range(5):
        follower = compiler.start(Guide(regex=pattern), len(PROMPT))
        output = draw(follower, seed)
        assert re.fullmatch(pattern, NANO.decode(output))
        assert follower.ended([*PROMPT, *output])


def test_a_grammar_is_kept_to(compiler):
    grammar = 'start: sum\nsum: NUMBER ("+" NUMBER)~1..3\nNUMBER: /[1-9][0-9]?/'
    for seed in range(5):
        output = draw(compiler.start(Guide(grammar=grammar), len(PROMPT)), seed)
        assert re.fullmatch(r"[1-9][0-9]?(\+[1-9][0-9]?){1,3}", NANO.decode(output))


def test_the_end_is_allowed_where_the_guide_is_satisfied_and_only_there(compiler):
    follower = compiler.start(Guide(regex="[0-9]{2,3}"), 0)
    digits = NANO.encode("123", add_special_tokens=False)
    assert [bool(follower.allowed(digits[:length])[END]) for length in range(4)] == [False, False, True, True]
    assert follower.allowed(digits).sum() == 1 and follower.ended(digits)


@pytest.mark.parametrize("text", ["!", "e"])
def test_an_end_that_is_plain_text_too_ends_nothing_that_is_not_whole(text):
    """As the end of a base vocabulary, or of a chat format whose marks were never made special."""
    [end] = NANO.encode(text, add_special_tokens=False)
    compiler = GuideCompiler(NANO, [end])
    for seed in range(20):
        follower, tokens = compiler.start(Guide(regex='"[a-e!]{2,40}"'), 0), []
        generator = torch.Generator().manual_seed(seed)
        while not follower.ended(tokens) and (not tokens or tokens[-1] != end):
            logits = torch.randn(len(NANO), generator=generator).index_fill(0, torch.tensor(end), 99.0)
            allowed = follower.allowed(tokens)[: len(NANO)]
            tokens.append(int(logits.masked_fill(~allowed, -torch.inf).argmax()))
        said = NANO.decode([token for token in tokens if token != end])
        assert re.fullmatch('"[a-e!]{2,40}"', said), said


def test_every_end_of_sentence_is_allowed(compiler):
    other = NANO.convert_tokens_to_ids("<|User|>")
    follower = GuideCompiler(NANO, [END, other]).start(Guide(regex="a?"), 0)
    assert follower.allowed([])[[END, other]].all()


def test_what_was_compiled_is_kept_and_followers_do_not_share_their_place(compiler, monkeypatch):
    first = compiler.start(Guide(regex="xy"), 0)
    monkeypatch.setattr(guides, "_llguidance", lambda: pytest.fail("compiled again"))
    second = compiler.start(Guide(regex="xy"), 0)
    [x, y] = NANO.encode("xy", add_special_tokens=False)
    assert first.allowed([x])[y] and not second.allowed([])[y] and second.allowed([])[x]


def test_threads_that_ask_for_the_same_wait_for_one(monkeypatch):
    own, made = GuideCompiler(NANO, [END]), []
    compiled = own._compile
    monkeypatch.setattr(own, "_compile", lambda kind, text: made.append(text) or compiled(kind, text))
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(own.start, Guide(regex=f"x{number % 2}+"), 0) for number in range(32)]
        masks = [one.result().allowed([]) for one in asked]
    assert sorted(made) == ["x0+", "x1+"] and all(torch.equal(mask, masks[0]) for mask in masks)


def test_as_many_as_256_are_kept(monkeypatch):
    own, made = GuideCompiler(NANO, [END]), []
    monkeypatch.setattr(own, "_compile", lambda kind, text: made.append(text) or Copied())
    for text in [*map(str, range(257)), "256", "1", "0"]:
        own.start(Guide(regex=text), 0)
    assert made == [*map(str, range(257)), "0"]


class Copied:
    """A matcher that nobody asks for masks."""

    def deep_copy(self):
        return self


def test_a_guide_that_takes_too_long_to_compile_is_refused_and_not_tried_again_in_as_long(compiler, monkeypatch):
    words = {"enum": [f"word {number * 7919 % 100_003}" for number in range(12_000)]}
    hasty = Guide(json_schema=words, timeout=0.01)
    with pytest.raises(
        GuideError, match=r"json_schema cannot be followed: it takes longer than 0\.01 seconds"
    ) as error:
        compiler.start(hasty, 0)
    assert error.value.too_complex
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "_compile", lambda *given: pytest.fail("tried again"))
        with pytest.raises(GuideError, match="takes longer"):
            compiler.start(hasty, 0)
    assert compiler.start(Guide(json_schema=words, timeout=60), 0).allowed([]).any()
    wait_until_none_is_left()


@pytest.mark.parametrize(
    ("guide", "complex"),
    [
        (Guide(json_schema={"enum": [f"v{number}" for number in range(100_000)]}), True),
        (Guide(json_schema='{"items":' * 200 + "{}" + "}" * 200), True),
        (Guide(json_schema={"not": {"type": "null"}}), False),
        (Guide(json_schema={"type": "array", "uniqueItems": True}), False),
        (Guide(json_schema={"x-guidance": {"lenient": True}, "not": {}}), False),
    ],
)
def test_what_is_beyond_limits_is_told_from_what_is_wrong_and_refused_again_at_once(
    compiler, monkeypatch, guide, complex
):
    with pytest.raises(GuideError) as error:
        compiler.start(guide, 0)
    assert error.value.too_complex == complex
    monkeypatch.setattr(compiler, "_compile", lambda *given: pytest.fail("tried again"))
    with pytest.raises(GuideError) as again:
        compiler.start(guide, 0)
    assert (str(again.value), again.value.too_complex) == (str(error.value), complex)


@pytest.mark.parametrize("pattern", ["(a{1,1000}){1,1000}", "(.*a.{20}){3}", "[01]*1[01]{40}", "(x+x+)+y"])
def test_row_22_bad_expressions_take_no_long_step(compiler, pattern):
    """Some are refused; in those that are not, no token takes its budget."""
    try:
        follower = compiler.start(Guide(regex=pattern), len(PROMPT))
    except GuideError:
        return
    draw(follower, 0, most=100)
    assert not follower.error


def test_a_mask_that_takes_too_long_ends_its_guide_alone(compiler, monkeypatch):
    follower, other = (compiler.start(Guide(regex="[ab]+"), 0) for _ in range(2))
    matcher = follower._matcher
    follower._matcher = Slow(matcher)
    begun = time.thread_time()
    assert not follower.allowed([]).any() and follower.error == "it took longer than 50 ms for one token"
    assert time.thread_time() - begun < 0.2
    assert other.allowed([]).any() and not other.error
    wait_until_none_is_left()


class Slow:
    """A matcher whose mask takes half a second of processor time."""

    def __init__(self, matcher):
        self._matcher = matcher

    def compute_bitmask(self):
        burn(0.5)
        return self._matcher.compute_bitmask()

    def __getattr__(self, name):
        return getattr(self._matcher, name)


def test_stops_count_only_where_a_guide_lets_them(compiler):
    text = NANO.encode('{"a": "b"}', add_special_tokens=False)
    strict, free = (compiler.start(Guide(grammar='start: "{" /[^}]*/ "}"', stops=stops), 0) for stops in (False, True))
    assert [strict.may_stop(text[:length]) for length in range(len(text) + 1)] == [False] * (len(text) + 1)
    assert [free.may_stop(text[:length]) for length in range(len(text) + 1)] == [False] * len(text) + [True]
    strict = compiler.start(Guide(regex="ab*"), 0)
    assert strict.may_end_by(END, NANO.encode("ab")) and not strict.may_end_by(text[0], NANO.encode("ab"))
    opened = NANO.encode("<|det|>[[", add_special_tokens=False)
    boxes = compiler.start(Guide(boxes=True), 0)
    assert boxes.may_stop([]) and not boxes.may_stop(opened) and not boxes.may_end_by(text[0], opened)


def test_a_follower_catches_up_with_tokens_it_was_not_asked_about(compiler):
    tokens = NANO.encode('{"name":"An', add_special_tokens=False)
    at_once, step_by_step = (compiler.start(Guide(json_schema=PERSON), 0) for _ in range(2))
    for length in range(len(tokens)):
        step_by_step.allowed(tokens[:length])
    assert torch.equal(at_once.allowed(tokens), step_by_step.allowed(tokens))


def test_a_follower_that_is_led_astray_allows_nothing(compiler):
    follower = compiler.start(Guide(regex="[0-9]+"), 0)
    tokens = NANO.encode("ab", add_special_tokens=False)
    assert not follower.allowed(tokens).any() and not follower.ended(tokens)
    assert "doesn't satisfy the grammar" in follower.error
    assert draw(follower, 0, tokens) == []


def test_a_panic_of_llguidance_ends_its_own_output_and_no_other():
    """An end token that is a quotation mark too makes llguidance panic; copies of that matcher would do so for good."""
    quote = NANO.convert_tokens_to_ids('"')
    compiler = GuideCompiler(NANO, [quote, END])
    pair = {"type": "object", "properties": {"v": {"type": "integer"}, "w": {"type": "null"}}, "required": ["v", "w"]}

    def followed(text: str) -> str:
        guide = compiler.start(Guide(json_schema=pair), prompt_length=0)
        guide.allowed([NANO.encode(character, add_special_tokens=False)[-1] for character in text])
        return guide.error

    assert followed('{"v":1,"w":null}') == ""
    assert followed('{\n"v"\n:1,\n"w"') == "llguidance panicked"
    assert followed('{"v":1,"w":null}') == ""


def test_a_guide_and_a_prohibition_that_leave_nothing_draw_no_token(compiler):
    follower = compiler.start(Guide(regex="z"), len(PROMPT))
    [z] = NANO.encode("z", add_special_tokens=False)
    row = SampleRow(SamplingParams(logit_bias={z: -float("inf")}), PROMPT, len(PROMPT), guide=follower)
    assert sample(torch.zeros(1, len(NANO)), [row]).tokens.tolist() == [NO_TOKEN]


@pytest.mark.parametrize(
    ("guide", "reason"),
    [
        (Guide(regex="(a"), "the guide's regex cannot be followed: .*unclosed group"),
        (Guide(grammar="nothing: here"), "the guide's grammar cannot be followed: .*start"),
        (Guide(json_schema={"type": "objec"}), "the guide's json_schema cannot be followed: .*objec"),
        (Guide(json_schema={"type": "string", "pattern": "(a"}), "json_schema cannot be followed: .*unclosed group"),
    ],
)
def test_a_guide_that_cannot_be_followed_says_why(compiler, guide, reason):
    with pytest.raises(RequestError, match=f"(?s){reason}"):
        compiler.start(guide, 0)


def test_boxes_after_det_are_well_formed_and_the_rest_is_free():
    prompt = NANO.encode("<|ref|>cat<|/ref|><|det|>", add_special_tokens=False)
    close = NANO.convert_tokens_to_ids("<|/det|>")
    for seed in range(6):
        follower = GuideCompiler(NANO, [END]).start(Guide(boxes=True), len(prompt))
        output = draw(follower, seed, prompt, most=400, logit_bias={close: 3.0})
        answer = NANO.decode([*prompt, *output[: output.index(close) + 1]])
        report = parse_grounding_report(answer, (999, 999))
        assert report.skipped == [] and len(report.groundings) == 1
        assert follower.allowed([*prompt, *output[: output.index(close) + 1], 70]) is None
    assert GuideCompiler(NANO, [END]).start(Guide(boxes=True), 1).allowed(PROMPT) is None


def test_a_missing_llguidance_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r'^guides need llguidance: pip install "modelwright\[guide\]"$'):
        GuideCompiler(NANO, [END]).start(Guide(regex="a"), 0)


def test_tokenizers_that_do_not_fit_are_refused():
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(RequestError, match=r"the guide's boxes cannot be followed: .*the tokenizer has no token"):
        GuideCompiler(bare, [0]).start(Guide(boxes=True), 0)
