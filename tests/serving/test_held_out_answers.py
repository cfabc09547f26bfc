"""Answers to held-out rows: what the engine continues, what counts as exact, and the files that samples stand in."""

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from modelwright import load, zoo
from modelwright.configs.run import DataPart, SourcePart
from modelwright.data.encoding import encoder_of
from modelwright.data.examples import Chat, Example, Message, Pair, Picture, PictureRef, Place, Text
from modelwright.serving.held_out_answers import answer_rows, answers_of, exact_share
from modelwright.training.evaluation import untouched
from modelwright.training.report.samples import write_samples
from recipes.vl2_nano.evaluate import conversation
from recipes.vl2_nano.questions import probe


def png(picture):
    file = BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def rows_of(task, count):
    """Probes as chats whose answer is the one that the model gives, so that it is known."""
    rng = np.random.default_rng(7)
    found = []
    for number in range(count):
        item = probe(rng, task)
        words = conversation(item)[-2]["content"].removeprefix("<image>\n")
        asked = Message("user", (PictureRef(png(item.pictures[0])), words))
        found.append((item, Example(Place("rows.jsonl", number + 1), Chat((asked, Message("assistant", ("no",)))))))
    return found


@pytest.fixture(scope="module")
def seeing():
    loaded = load(zoo.path("vl2-nano"), device="cpu", dtype="float32")
    return loaded, encoder_of(loaded.processor, DataPart(seq_length=1024))


def test_chats_with_pictures_are_answered_as_a_user_gets_them(seeing, tmp_path):
    loaded, encoder = seeing
    items = rows_of("grounding", 3)
    answers = answer_rows(loaded.model, loaded.processor, encoder, [row for _, row in items])
    assert sum(item.check(answer.said) for (item, _), answer in zip(items, answers, strict=True)) >= 2
    assert all(answer.wanted == "no" and answer.exact is False for answer in answers)
    again = [
        Example(row.place, Chat((row.content.messages[0], Message("assistant", (answer.said,)))))
        for (_, row), answer in zip(items, answers, strict=True)
    ]
    assert exact_share(answer_rows(loaded.model, loaded.processor, encoder, again)) == 1.0
    folder = write_samples(tmp_path, 200, {"held_out": answers})
    assert folder == tmp_path / "samples" / "step-000200"
    text = (folder / "answers.md").read_text()
    assert text.count("## held_out: rows.jsonl:") == 3 and answers[0].said in text and "![1.png](1.png)" in text
    assert sorted(path.name for path in folder.glob("*.png")) == ["1.png", "2.png", "3.png"]
    write_samples(tmp_path, 200, {"held_out": answers[:1]})
    assert sorted(path.name for path in folder.iterdir()) == ["1.png", "answers.md"]


def test_an_answer_ends_where_its_template_ends_a_turn(v2):
    """Who was taught a template's end of a turn is asked for no more, and that end is no word of the answer."""
    loaded = load(v2, device="cpu", dtype="float32")
    end = loaded.tokenizer.convert_tokens_to_ids("<｜▁pad▁｜>")
    loaded.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }}<｜▁pad▁｜>{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )

    def say_nothing(module, inputs, logits):
        return logits + 1e4 * torch.nn.functional.one_hot(torch.tensor(end), logits.shape[-1])

    loaded.model.lm_head.register_forward_hook(say_nothing)
    chat = Chat((Message("user", ("Hi",)), Message("assistant", ("hello",))))
    (answer,) = answer_rows(
        loaded.model, loaded.processor, encoder_of(loaded.processor, DataPart()), [Example(Place("a", 1), chat)]
    )
    assert (answer.wanted, answer.said) == ("hello", "")


def test_pairs_and_texts_are_continued(seeing):
    loaded, encoder = seeing
    rows = [
        Example(Place("a", 1), Pair("There are two", " shapes")),
        Example(Place("a", 2), Text("The picture shows two shapes and a card with letters on it.")),
    ]
    pair, text = answer_rows(loaded.model, loaded.processor, encoder, rows)
    assert pair.wanted == " shapes" and pair.exact in (True, False) and pair.prompt.endswith("There are two")
    assert text.exact is None and text.said and "The picture shows".startswith(text.prompt.strip()[-4:]) is False
    assert exact_share([text]) is None


@pytest.mark.slow
def test_training_goes_on_after_answers_as_without_them(seeing):
    """The engine leaves nothing behind in the model: neither tables made in inference mode nor stale weights."""
    _, encoder = seeing
    rows = [row for _, row in rows_of("count", 2)]
    ends = []
    for answers in (False, True):
        loaded = load(zoo.path("vl2-nano"), device="cpu", dtype="float32")
        model, said = loaded.model.train(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        torch.manual_seed(0)
        for step in range(3):
            if answers:
                with untouched(model):
                    said.append([answer.said for answer in answer_rows(model, loaded.processor, encoder, rows)])
            ids = torch.arange(20, 44)[None] + step
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append({name: value.clone() for name, value in model.state_dict().items()})
        if answers:
            fresh = load(zoo.path("vl2-nano"), device="cpu", dtype="float32")
            fresh.model.load_state_dict(model.state_dict())
            with untouched(model):
                now = answer_rows(model, loaded.processor, encoder, rows)
            anew = answer_rows(fresh.model.eval(), loaded.processor, encoder, rows)
            assert [answer.said for answer in now] == [answer.said for answer in anew]
    without, beside = ends
    assert all(torch.equal(without[name], beside[name]) for name in without)


@pytest.mark.slow
def test_pictures_are_drawn_on(tmp_path):
    loaded = load(zoo.path("imagegpt-nano"), device="cpu", dtype="float32")
    encoder = encoder_of(loaded.processor, DataPart(seq_length=4096))
    size = loaded.processor.size
    grey = np.full((size["height"], size["width"], 3), 200, np.uint8)
    row = Example(Place("pictures/a.png", 1), Picture(PictureRef(png(Image.fromarray(grey)))))
    [answer] = answer_rows(loaded.model, loaded.processor, encoder, [row])
    assert answer.drawn is not None and answer.exact is None
    folder = write_samples(tmp_path, 1, {"held_out": [answer]})
    assert (folder / "1.png").stat().st_size > 0


def test_the_first_rows_of_each_set_are_answered(seeing, tmp_path):
    loaded, _ = seeing
    rows = [{"prompt": "There are", "completion": " two shapes."}] * 3
    lines = [*map(json.dumps, rows)]
    unseen = json.dumps({"messages": [{"role": "user", "content": "<image>"}], "images": ["nowhere.png"]})
    long = json.dumps({"prompt": "There are", "completion": " two" * 2000})
    (tmp_path / "rows.jsonl").write_text("\n".join([lines[0], "no row", unseen, long, *lines[1:]]) + "\n")
    part = DataPart(eval=(SourcePart(path="rows.jsonl", name="few"),), seq_length=1024)
    found = answers_of(part, 2, tmp_path)(loaded.model, loaded.processor)
    assert [answer.place.rpartition(":")[2] for answer in found["few"]] == ["1", "5"]


@pytest.mark.parametrize("labels", ["all", "assistant"])
def test_rows_that_are_learned_whole_are_asked_for_their_answers(seeing, tmp_path, labels):
    loaded, _ = seeing
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    rows = [{"messages": turns}, {"prompt": "There are", "completion": " two."}]
    (tmp_path / "chats.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (tmp_path / "pairs.jsonl").write_text(json.dumps(rows[1]) + "\n")
    sources = tuple(SourcePart(path=f"{name}.jsonl", name=name) for name in ("chats", "pairs"))
    part = DataPart(eval=sources, seq_length=1024, labels=labels)
    found = answers_of(part, 1, tmp_path)(loaded.model, loaded.processor)
    assert [found[name][0].wanted for name in ("chats", "pairs")] == ["Yes.", " two."]
    assert found["chats"][0].prompt.rstrip().endswith("<|Assistant|>:") and "Hello?" in found["chats"][0].prompt
