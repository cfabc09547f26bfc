"""Which tokens of a conversation are learned, told by what they read, over templates, tokenizers and conversations."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers
from packaging.version import Version

from modelwright.data.documents import UNLEARNED, Document
from modelwright.data.encoding import encoder_of
from modelwright.data.encoding.learning import Unlearned
from modelwright.data.examples import BrokenRow, Chat, Example, Message, Pair, Place, Text, Tokens
from tests.data.encoding import published as made

HERE = Place("chats.jsonl", 7)
TEMPLATES = {
    name.lower(): getattr(made, name)
    for name in ("CHATML", "LLAMA3", "MISTRAL", "DEEPSEEK", "ZEPHYR", "PHI3", "NO_PROMPT", "VICUNA", "QWEN3")
}
END = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "phi3": "<|end|>",
    "no_prompt": "<|im_end|>",
    "qwen3": "<|im_end|>",
}
SPACED = ("mistral", "deepseek", "vicuna")  # print a space between what asks for an answer and the answer
TOKENIZERS = {"bytes": made.byte_level, "spaces": made.metaspace}


def encoder(tokenizer: Any, labels: str = "assistant", seq_length: int = 4096, truncate: str = "refuse", **more) -> Any:
    return encoder_of(tokenizer, SimpleNamespace(labels=labels, seq_length=seq_length, truncate=truncate), **more)


def chat(*turns: tuple, place: Place = HERE) -> Example:
    """Turns of role and words, and whether they are learned where that is said."""
    return Example(place, Chat(tuple(Message(role, (words,), *learn) for role, words, *learn in turns)))


def learned(tokenizer: Any, document: Document) -> list[str]:
    """What each stretch of learned tokens reads."""
    counts = np.flatnonzero(document.labels != UNLEARNED)
    assert (document.labels[counts] == document.ids[counts]).all()
    stretches = np.split(counts, np.flatnonzero(np.diff(counts) > 1) + 1) if len(counts) else []
    return [tokenizer.decode(document.ids[each], clean_up_tokenization_spaces=False) for each in stretches]


def printed(tokenizer: Any, turns: list[tuple], **how: Any) -> str:
    messages = [{"role": role, "content": words} for role, words, *_ in turns]
    return tokenizer.apply_chat_template(messages, tokenize=False, **how)


def expected(name: str, number_of_answers: int, words: list[str]) -> list[str]:
    """The answers as they are to be said, by hand."""
    said = []
    for number, answer in enumerate(words):
        last = number == number_of_answers - 1
        end = END.get(name, "</s>") if name != "vicuna" or last else ""
        thought = "<think>\n\n</think>\n\n" if name == "qwen3" and last else ""
        answer = answer.strip() if name == "llama3" else answer.rstrip() if name == "vicuna" else answer
        space = " " if name in SPACED and (answer or name != "vicuna") else ""  # white space is no end of an answer
        said.append(space + thought + answer + end)
    return [each for each in said if each]


CONVERSATIONS = {
    "one": [("user", "What is two plus two?"), ("assistant", "It is four.")],
    "several": [
        *(("user", "hello"), ("assistant", "Say hello to the world!")),
        *(("user", "And 2+2?"), ("assistant", "four"), ("user", "why"), ("assistant", "of course\n\nnew line")),
    ],
    "empty": [("user", "hello"), ("assistant", ""), ("user", "What?"), ("assistant", "four")],
    "empty last": [("user", "hello"), ("assistant", "")],
    "unicode": [("user", "Käse, 你好 🙂"), ("assistant", "naïve café 你好世界 🙂🙂")],
    "space": [("user", "hello  "), ("assistant", "  two spaces ")],
    "same words": [("user", "four"), ("assistant", "four"), ("user", "four"), ("assistant", "four")],
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answers_and_their_ends_are_learned_and_nothing_else(name, kind, conversation):
    tokenizer, turns = TOKENIZERS[kind](TEMPLATES[name]), CONVERSATIONS[conversation]
    answers = [words for role, words in turns if role == "assistant"]
    document = encoder(tokenizer)(chat(*turns))
    said = expected(name, len(answers), answers)
    found = learned(tokenizer, document)
    if kind == "spaces":  # which decode without the first space
        said, found = [each.strip(" ") for each in said], [each.strip(" ") for each in found]
    assert found == said
    whole = tokenizer.encode(printed(tokenizer, turns), add_special_tokens=False)
    read = tokenizer.decode(document.ids, clean_up_tokenization_spaces=False)
    assert tokenizer.decode(whole, clean_up_tokenization_spaces=False).startswith(read.removesuffix("</s>").rstrip())
    assert (document.ids == tokenizer.bos_token_id).sum() == TEMPLATES[name].count(
        "bos_token"
    )  # once, where there is one


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_learned_follows_the_very_prompt_that_asks_for_it(name):
    """The tokens before an answer are those of the prompt that the model is given when it is used."""
    tokenizer, turns = made.byte_level(TEMPLATES[name]), CONVERSATIONS["several"]
    document = encoder(tokenizer, labels="last")(chat(*turns))
    prompt = printed(tokenizer, turns[:-1], add_generation_prompt=True)
    # a template that cannot ask prints the answer's header itself
    prompt += "<|im_start|>assistant\n" if name == "no_prompt" else ""
    first = int(np.flatnonzero(document.labels != UNLEARNED)[0])
    assert document.ids[:first].tolist() == tokenizer.encode(prompt, add_special_tokens=False)


MARKED = {  # as TRL marks them for transformers: the words of an answer and its end
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama3": "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", MARKED)
def test_labels_are_transformers_masks_where_a_template_has_marks(name, kind, conversation):
    tokenizer, turns = TOKENIZERS[kind](MARKED[name]), CONVERSATIONS[conversation]
    document = encoder(tokenizer)(chat(*turns))
    messages = [{"role": role, "content": words} for role, words in turns]
    theirs = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = np.array(theirs["input_ids"]), np.array(theirs["assistant_masks"], bool)
    if conversation == "space" and not mask.any():  # releases such as 5.17 lose an answer that begins with a space
        assert Version(transformers.__version__) < Version("5.24")
        return
    if document.ids.tolist() == ids.tolist():
        assert (document.labels != UNLEARNED).tolist() == mask.tolist()
    else:  # ours end with the prompt, where theirs part its last line breaks by what the answer begins with
        assert (name, kind) == ("llama3", "bytes")
        whole = Document(ids, np.where(mask, ids, UNLEARNED), HERE)
        assert learned(tokenizer, document) == learned(tokenizer, whole)


@pytest.mark.parametrize("labels", ["assistant", "last"])
def test_a_message_says_itself_whether_it_is_learned(labels):
    tokenizer = made.byte_level(made.CHATML)
    turns = [("user", "a"), ("assistant", "one", True), ("user", "b"), ("assistant", "two", False), ("user", "c")]
    document = encoder(tokenizer, labels)(chat(*turns, ("assistant", "three")))
    assert learned(tokenizer, document) == ["one<|im_end|>", "three<|im_end|>"]


def test_the_last_answer_alone():
    tokenizer = made.byte_level(made.CHATML)
    assert learned(tokenizer, encoder(tokenizer, "last")(chat(*CONVERSATIONS["several"]))) == [
        "of course\n\nnew line<|im_end|>"
    ]


def test_all_is_everything_but_the_first_token_and_answers_that_are_left_out():
    tokenizer = made.byte_level(made.CHATML)
    document = encoder(tokenizer, "all")(chat(*CONVERSATIONS["one"]))
    assert (document.labels[1:] == document.ids[1:]).all() and document.labels[0] == UNLEARNED
    turns = [("user", "a"), ("assistant", "bad", False), ("user", "b"), ("assistant", "good")]
    assert learned(tokenizer, encoder(tokenizer, "all")(chat(*turns))) == [
        "user\na<|im_end|>\n<|im_start|>assistant\n",
        "\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\ngood<|im_end|>\n",
    ]


@pytest.mark.parametrize(
    ("labels", "turn", "said"),
    [
        ("assistant", ("user", "a", True), r"messages\[0\] has loss: true and role user: only the assistant's"),
        ("all", ("user", "a", False), r"messages\[0\] has loss: false and role user: data.labels: all learns every"),
    ],
)
def test_only_answers_are_learned_one_by_one(labels, turn, said):
    with pytest.raises(BrokenRow, match=rf"chats.jsonl:7: {said}"):
        encoder(made.byte_level(made.CHATML), labels)(chat(turn, ("assistant", "b")))


def test_thoughts_that_a_template_leaves_out_are_not_learned_wrongly():
    tokenizer = made.byte_level(made.QWEN3)
    turns = [
        ("user", "a"),
        ("assistant", "<think>\nhm\n</think>\n\none"),
        ("user", "b"),
        ("assistant", "<think>x</think>y"),
    ]
    with pytest.raises(BrokenRow, match=r"leaves out a part of messages\[1\], such as its thoughts.*data.labels: last"):
        encoder(tokenizer)(chat(*turns))
    document = encoder(tokenizer, "last")(chat(*turns))
    assert learned(tokenizer, document) == ["<think>\nx\n</think>\n\ny<|im_end|>"]


def test_a_prompt_that_no_answer_follows_is_refused():
    tokenizer = made.byte_level(made.R1)
    with pytest.raises(
        BrokenRow, match=r"asks for messages\[1\] with '<think>.n' where it prints 'It is four"
    ) as caught:
        encoder(tokenizer)(chat(*CONVERSATIONS["one"]))
    assert "data.labels" not in str(caught.value)  # there is no other answer to learn


def test_what_a_template_refuses_is_a_broken_row():
    with pytest.raises(
        BrokenRow, match=r"chats.jsonl:7: the chat template cannot print.*Only user and assistant roles"
    ):
        encoder(made.byte_level(made.MISTRAL))(chat(("system", "be kind"), *CONVERSATIONS["one"]))


def test_an_answer_to_nothing_is_learned():
    tokenizer = made.byte_level(made.CHATML)
    document = encoder(tokenizer)(chat(("assistant", "hello"), ("user", "a"), ("assistant", "b")))
    assert learned(tokenizer, document) == ["hello<|im_end|>", "b<|im_end|>"]


def test_special_tokens_need_not_be_known_to_the_tokenizer():
    tokenizer = made.byte_level(made.CHATML, special=["<s>", "</s>", "<pad>"])
    document = encoder(tokenizer)(chat(*CONVERSATIONS["several"]))
    assert learned(tokenizer, document) == [
        f"{words}<|im_end|>" for role, words in CONVERSATIONS["several"] if role == "assistant"
    ]


def test_the_day_of_training_is_in_no_document():
    today = "{{ strftime_now('%d %b %Y') }}" + made.CHATML
    tokenizer = made.byte_level(today)
    assert tokenizer.decode(encoder(tokenizer)(chat(*CONVERSATIONS["one"])).ids).startswith("26 Jul 2024<|im_start|>")


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_all_of_a_text_and_its_end(kind, adds_bos):
    tokenizer = TOKENIZERS[kind](adds_bos=adds_bos)
    for text in ("It is four.", "It is four.</s>", "<s>It is four."):
        document = encoder(tokenizer)(Example(HERE, Text(text)))
        marked = adds_bos or text.startswith("<s>")
        assert (document.ids == tokenizer.bos_token_id).sum() == marked and document.ids[-1] == tokenizer.eos_token_id
        assert (document.ids == tokenizer.eos_token_id).sum() == 1
        assert (document.labels[1:] == document.ids[1:]).all() and document.labels[0] == UNLEARNED


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize(
    ("kind", "prompt", "completion"),
    [
        *(("bytes", "What is two plus two?\n", "It is four."), ("bytes", "It is ", "four, of course")),
        *(("bytes", "", "hello"), ("bytes", "hello", ""), ("bytes", "你", "好"), ("spaces", "It is", " four")),
    ],
)
def test_of_a_pair_the_completion_and_its_end_are_learned(kind, prompt, completion, adds_bos):
    tokenizer = TOKENIZERS[kind](adds_bos=adds_bos)
    document = encoder(tokenizer)(Example(HERE, Pair(prompt, completion)))
    [said] = learned(tokenizer, document)
    whole = "<s>" * adds_bos + prompt + completion + "</s>"
    read = tokenizer.decode(document.ids, clean_up_tokenization_spaces=False)
    assert (read.replace("<s> ", "<s>") if kind == "spaces" else read) == whole
    first = completion if adds_bos or prompt else completion[1:]  # the first token of all is never foreseen
    assert said.lstrip(" ") == (first + "</s>").lstrip(" ") or (not prompt and not adds_bos)
    if kind == "bytes":  # no token reaches over the border
        start = int(np.flatnonzero(document.labels != UNLEARNED)[0])
        bare = tokenizer.encode(prompt, add_special_tokens=False)
        assert document.ids[:start].tolist() == [tokenizer.bos_token_id] * adds_bos + bare or not prompt


def test_a_pair_is_learned_whole_where_everything_is():
    tokenizer = made.byte_level()
    document = encoder(tokenizer, "all")(Example(HERE, Pair("It is ", "four")))
    assert (document.labels[1:] == document.ids[1:]).all()


def test_tokens_are_taken_as_they_are_given():
    tokenizer = made.byte_level()
    given = Tokens(np.array([5, 6, 7, 8]), np.array([5, UNLEARNED, 7, 8]))
    document = encoder(tokenizer, vocabulary=9)(Example(HERE, given))
    assert document.ids.tolist() == [5, 6, 7, 8] and document.labels.tolist() == [UNLEARNED, UNLEARNED, 7, 8]
    assert encoder(tokenizer)(Example(HERE, Tokens(np.array([5, 6])))).labels.tolist() == [UNLEARNED, 6]
    for ids, labels, said in (
        ([5, 9], None, "input_ids must be at least 0 and below the model's 9 tokens, got 9"),
        ([-1, 3], None, "at least 0 and below the model's 9 tokens, got -1"),
        ([5, 6], [5, 7], r"labels\[1\] must be input_ids\[1\] \(6\) or -100, got 7"),
        ([5, 6], [5], r"as many as input_ids \(2\), got 1"),
    ):
        tokens = Tokens(np.array(ids), None if labels is None else np.array(labels))
        with pytest.raises(BrokenRow, match=said):
            encoder(tokenizer, vocabulary=9)(Example(HERE, tokens))


def test_a_long_row_is_refused_or_loses_its_end():
    tokenizer = made.byte_level(made.CHATML)
    example = chat(*CONVERSATIONS["several"])
    whole = encoder(tokenizer)(example)
    with pytest.raises(BrokenRow, match=rf"7: the document has {len(whole)} tokens and data.seq_length allows 30; "):
        encoder(tokenizer, seq_length=30)(example)
    cut = encoder(tokenizer, seq_length=len(whole) - 3, truncate="end")(example)
    assert cut.ids.tolist() == whole.ids[:-3].tolist() and cut.labels.tolist() == whole.labels[:-3].tolist()
    with pytest.raises(Unlearned, match=rf"no token of the first 5 of its {len(whole)} tokens is learned"):
        encoder(tokenizer, seq_length=5, truncate="end")(example)


def test_a_row_that_teaches_nothing_is_refused():
    tokenizer = made.byte_level(made.CHATML)
    for example in (
        chat(("user", "hello")),
        chat(("user", "a"), ("assistant", "b", False)),
        Example(HERE, Tokens(np.array([4]))),
        Example(HERE, Tokens(np.array([], np.int64))),
    ):
        with pytest.raises(Unlearned, match=r"chats.jsonl:7: the row teaches nothing: no token of it is learned"):
            encoder(tokenizer)(example)


def test_a_model_without_a_template_reads_no_conversation_but_its_familys():
    with pytest.raises(BrokenRow, match="has no chat template"):
        encoder(made.byte_level())(chat(*CONVERSATIONS["one"]))
    tokenizer = made.byte_level()
    document = encoder(tokenizer, template=made.CHATML)(chat(*CONVERSATIONS["one"]))
    assert learned(tokenizer, document) == ["It is four.<|im_end|>"]


def test_a_tokenizer_that_writes_what_the_model_does_not_know_is_a_broken_row():
    tokenizer = made.byte_level(made.CHATML)
    largest = max(tokenizer.encode("four"))
    for content in (Text("four"), Pair("It is ", "four"), chat(("user", "It?"), ("assistant", "four")).content):
        encoder(tokenizer, vocabulary=len(tokenizer))(Example(HERE, content))
        with pytest.raises(BrokenRow, match="the tokenizer writes token"):
            encoder(tokenizer, vocabulary=largest)(Example(HERE, content))
