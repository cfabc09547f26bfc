"""The data of vl2-nano: pictures are as described, answers agree with the picture, any text can be tokenized."""

import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from recipes.vl2_nano import asking, follow_up, pairs
from recipes.vl2_nano.facts import Asked, Phrase, View, grounded, named, on_side, view_of
from recipes.vl2_nano.fonts import ALPHABET, families, fonts
from recipes.vl2_nano.judge import boxes, iou, judge, same_boxes
from recipes.vl2_nano.palette import COLOURS, SHADES, light, name_of, shade
from recipes.vl2_nano.pictures import Card, Scene, Shape, draw_card, draw_scene
from recipes.vl2_nano.questions import CARD, PROBES, SCENE, make_example, probe
from recipes.vl2_nano.tokenizer import MARKS, build_tokenizer
from recipes.vl2_nano.wording import WORDINGS, say
from recipes.vl2_nano.world import KINDS


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = rng_of(1)
    return [draw_scene(rng) for _ in range(150)]


@pytest.fixture(scope="module")
def cards() -> list[Card]:
    rng = rng_of(2)
    return [draw_card(rng) for _ in range(100)]


class TestPalette:
    def test_every_listed_shade_has_its_own_name(self):
        assert {name: {name_of(rgb) for rgb in shades} for name, shades in SHADES.items()} == {
            name: {name} for name in SHADES
        }

    def test_shades_keep_their_name_and_backgrounds_have_none(self):
        rng = rng_of(0)
        for name in SHADES:
            assert {name_of(shade(rng, name)) for _ in range(200)} == {name}
        assert {name_of(light(rng)) for _ in range(500)} == {None}


class TestScenes:
    def test_pictures_and_shapes_are_of_the_promised_sizes(self, scenes: list[Scene]):
        for scene in scenes:
            width, height = scene.picture.size
            assert 96 <= min(width, height) <= max(width, height) <= 512
            assert max(width, height) <= 2 * min(width, height) + 1
            assert 1 <= len(scene.shapes) <= 5
            for shape in scene.shapes:
                x1, y1, x2, y2 = shape.box
                assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
                longer = max(x2 - x1, y2 - y1)
                assert 0.12 * min(width, height) - 2 <= longer <= 0.4 * min(width, height)

    def test_every_number_kind_and_colour_is_drawn(self, scenes: list[Scene]):
        assert {len(scene.shapes) for scene in scenes} == {1, 2, 3, 4, 5}
        assert {shape.kind for scene in scenes for shape in scene.shapes} == set(KINDS)
        assert {shape.colour for scene in scenes for shape in scene.shapes} == set(COLOURS)

    def test_boxes_are_disjoint_with_a_gap(self, scenes: list[Scene]):
        for scene in scenes:
            for i, one in enumerate(scene.shapes):
                for other in scene.shapes[i + 1 :]:
                    apart_x = max(one.box[0], other.box[0]) - min(one.box[2], other.box[2])
                    apart_y = max(one.box[1], other.box[1]) - min(one.box[3], other.box[3])
                    assert max(apart_x, apart_y) >= 2

    def test_boxes_are_tight_around_the_pixels_drawn(self, scenes: list[Scene]):
        """A background is light in every channel, a shape is not; a soft edge may fade one pixel earlier."""
        for scene in scenes:
            drawn = np.asarray(scene.picture).min(axis=2) < 150  # [height, width]
            for shape in scene.shapes:
                x1, y1, x2, y2 = shape.box
                rows, columns = np.nonzero(drawn[y1:y2, x1:x2])
                seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                assert np.abs(np.array(seen) - (0, 0, x2 - x1, y2 - y1)).max() <= 3
                drawn[y1:y2, x1:x2] = False
            assert not drawn.any()

    def test_middle_of_a_shape_has_its_colour(self, scenes: list[Scene]):
        for shape, picture in ((shape, scene.picture) for scene in scenes for shape in scene.shapes):
            if shape.kind != "triangle":  # the middle of a lopsided triangle's box can lie outside it
                assert name_of(picture.getpixel(tuple(int(c) for c in shape.centre))) == shape.colour  # type: ignore[arg-type]


class TestCards:
    def test_texts_and_boxes(self, cards: list[Card]):
        assert {len(card.text) for card in cards} == {1, 2, 3, 4, 5, 6}
        for card in cards:
            assert set(card.text) <= set(ALPHABET)
            x1, y1, x2, y2 = card.box
            assert 0 <= x1 < x2 <= card.picture.width and 0 <= y1 < y2 <= card.picture.height
            assert y2 - y1 >= 0.08 * min(card.picture.size)

    def test_text_stands_out_within_its_box(self, cards: list[Card]):
        for card in cards:
            inside = np.asarray(card.picture.crop(card.box)).astype(int)
            assert (inside.max(axis=(0, 1)) - inside.min(axis=(0, 1))).max() >= 60

    def test_without_any_family_pillows_own_typeface_is_used(self):
        card = draw_card(rng_of(3), exclude=families())
        assert card.text

    def test_excluded_families_are_left_out(self):
        some = tuple(families())[:1]
        assert set(fonts(exclude=some)) == set(fonts()) - {file for name in some for file in families()[name]}


class TestFacts:
    view = View(
        (400, 200),
        shapes=(
            Shape("circle", "red", (10, 10, 50, 50)),
            Shape("square", "blue", (60, 100, 100, 140)),
            Shape("circle", "red", (200, 90, 240, 130)),
            Shape("star", "green", (300, 10, 350, 60)),
        ),
    )

    def test_sides_are_by_centres_beyond_the_box(self):
        square = self.view.shapes[1]
        assert named(on_side(self.view, square, "left") or []) == "the red circle"
        assert named(on_side(self.view, square, "right") or []) == "the red circle and the green star"
        assert on_side(self.view, self.view.shapes[0], "left") == []

    def test_a_centre_beside_the_middle_but_not_beyond_the_box_is_not_asked_about(self):
        """The second circle's centre (y 110) is above the square's (120) but below the square's upper edge (100)."""
        assert on_side(self.view, self.view.shapes[1], "above") is None

    def test_boxes_are_scaled_to_999_in_tens_and_sorted(self):
        answer = grounded("the red circle", [(200, 90, 240, 130), (10, 10, 50, 50)], (400, 200))
        assert answer == ("<|ref|>the red circle<|/ref|><|det|>[[20, 50, 120, 250], [500, 450, 600, 650]]<|/det|>")

    def test_like_shapes_are_counted_together(self):
        assert named(self.view.shapes) == "two red circles, the blue square and the green star"

    def test_phrases_name_shapes(self):
        assert len(Phrase().among(self.view.shapes)) == 4
        assert len(Phrase("red").among(self.view.shapes)) == 2
        assert len(Phrase("red", "star").among(self.view.shapes)) == 0


class TestAnswers:
    """Each answer is recomputed here from the question's own words."""

    @staticmethod
    def asked(
        maker: Callable[[np.random.Generator, View], Asked | None], scenes: list[Scene]
    ) -> list[tuple[View, str, str]]:
        rng = rng_of(4)
        found = []
        for scene in scenes:
            made = maker(rng, view_of(scene))
            if made is not None:
                found.append((view_of(scene), made.turns[-1].question, made.turns[-1].answer))
        assert len(found) > 20
        return found

    @staticmethod
    def matches(view: View, words: str) -> list[Shape]:
        colours = re.findall("|".join(COLOURS), words.lower())
        kinds = re.findall("|".join(KINDS), words.lower())
        return [s for s in view.shapes if s.colour in (colours or COLOURS) and s.kind in (kinds or KINDS)]

    def test_count(self, scenes: list[Scene]):
        numbers = Counter()
        for maker in (asking.count, asking.count_none):
            for view, question, answer in self.asked(maker, scenes):
                number = len(self.matches(view, question))
                assert re.match(rf"{number}(, there are no [a-z ]+\.)?$", answer), (question, answer)
                numbers[number] += 1
        assert set(numbers) == {0, 1, 2, 3, 4, 5}

    def test_colour(self, scenes: list[Scene]):
        for view, question, answer in self.asked(asking.colour, scenes):
            true = {shape.colour for shape in self.matches(view, question)}
            assert set(re.findall(r"\w+", answer.lower())) - {"and"} == true, (question, answer)

    def test_shape(self, scenes: list[Scene]):
        for view, question, answer in self.asked(asking.shape, scenes):
            true = {shape.kind for shape in self.matches(view, question)}
            assert {word.removesuffix("s") for word in re.findall(r"\w{2,}", answer.lower())} - {"and"} == true

    def test_locate(self, scenes: list[Scene]):
        for view, question, answer in self.asked(asking.locate, scenes):
            label = re.findall(r"<\|ref\|>(.*?)<\|/ref\|>", answer)
            assert len(label) == 1 and label[0] in question.lower()
            scale = np.array([999 / view.size[0], 999 / view.size[1]] * 2)
            true = np.array([s.box for s in self.matches(view, label[0])]) * scale
            np.testing.assert_allclose(boxes(answer), true, atol=5)

    @pytest.mark.parametrize("maker", [asking.colour_none, asking.shape_none, asking.locate_none, asking.exists_none])
    def test_absent(self, scenes: list[Scene], maker: Callable[[np.random.Generator, View], Asked | None]):
        for view, question, answer in self.asked(maker, scenes):
            assert not self.matches(view, question), question
            assert re.match(r"(There is|No, there is) no [a-z ]+\.$", answer)

    def test_describe(self, scenes: list[Scene]):
        for view, _, answer in self.asked(asking.describe, scenes):
            found = re.findall(rf"an? ({'|'.join(COLOURS)}) ({'|'.join(KINDS)})", answer)
            assert found == [(shape.colour, shape.kind) for shape in view.shapes]

    def test_compare(self):
        rng = rng_of(6)
        answers = set()
        for _ in range(120):
            views = (view_of(draw_scene(rng), 0), view_of(draw_scene(rng), 1))
            made = pairs.compare(rng, views)
            assert made is not None
            question, answer = made.turns[0]
            first, second = (len(self.matches(view, question)) for view in views)
            if "fewer" in question.lower():
                first, second = second, first
            expected = (
                "Both have the same number."
                if first == second
                else f"The {'first' if first > second else 'second'} image."
            )
            assert answer == expected, question
            answers.add(answer)
        assert len(answers) == 3

    def test_questions_about_one_of_two_pictures_say_which(self):
        rng = rng_of(7)
        for _ in range(100):
            made = pairs.about_one(rng, (view_of(draw_scene(rng), 0), view_of(draw_card(rng), 1)))
            if made is not None:
                assert re.search("(first|second) (image|picture)|image [12]", made.turns[0].question.lower())

    def test_follow_ups_have_two_or_three_turns(self, scenes: list[Scene], cards: list[Card]):
        rng = rng_of(8)
        made = [follow_up.follow_up(rng, view_of(item)) for item in [*scenes, *cards]]
        assert {len(asked.turns) for asked in made if asked is not None} <= {2, 3}
        assert sum(asked is not None for asked in made) > 150


class TestExamples:
    def test_same_seed_same_example(self):
        one, two = make_example(rng_of(11)), make_example(rng_of(11))
        assert one.dialogues == two.dialogues
        assert [p.tobytes() for p in one.pictures] == [p.tobytes() for p in two.pictures]

    def test_proportions_and_numbers(self):
        rng = rng_of(12)
        assert len(make_example(rng, scene=0, card=0, pair=1).pictures) == 2
        examples = [make_example(rng, n=5) for _ in range(60)]
        assert {len(example.pictures) for example in examples} == {1, 2}
        assert all(1 <= len(example.dialogues) <= 5 for example in examples)
        assert all(isinstance(p, Image.Image) and p.mode == "RGB" for e in examples for p in e.pictures)

    def test_absent_things_are_a_fifth_to_a_quarter_of_what_is_asked_about_scenes(self):
        """Single-turn makers that have an absent half."""
        weights = {maker.__name__: weight for maker, weight in SCENE.items()}
        none = sum(weight for name, weight in weights.items() if name.endswith("_none"))
        whole = sum(w for name, w in weights.items() if name.endswith("_none") or f"{name}_none" in weights)
        assert 0.2 <= none / whole <= 0.25
        assert all(maker in CARD for maker in (asking.read, asking.locate, asking.colour_none))

    def test_wordings_of_the_issue_are_among_the_templates(self):
        assert WORDINGS["count"][0].format(things="red circles") == "How many red circles are there?"
        assert (
            WORDINGS["locate"][0].format(label="the red circle") == "<|grounding|>Locate <|ref|>the red circle<|/ref|>."
        )
        assert WORDINGS["more"][0].format(things="circles") == "Which image has more circles?"
        assert "the image" not in say(rng_of(0), "describe", place=1)


class TestProbes:
    @pytest.mark.parametrize("task", PROBES)
    def test_expected_answer_passes_and_others_do_not(self, task: str):
        rng = rng_of(13)
        for _ in range(25):
            asked = probe(rng, task)
            assert asked.check(asked.expected)
            assert not asked.check("I cannot say; it may be pink")

    def test_unknown_task_is_refused(self):
        with pytest.raises(ValueError, match=r"task \('counting'\) must be one of colour, shape, count"):
            probe(rng_of(0), "counting")


class TestJudge:
    @pytest.mark.parametrize(
        ("fact", "expected", "answer", "right"),
        [
            ("count", "3", "There are three red circles.", True),
            ("count", "3", "2", False),
            ("count", "0, there are no stars.", "There are no stars.", True),
            ("colour", "Red.", "The star is red", True),
            ("colour", "Red.", "Red and blue.", False),
            ("shape", "A circle.", "It's a circle", True),
            ("text", "7KX2P", 'The text is "7KX2P".', True),
            ("text", "7KX2P", "7KX2", False),
            ("text", "I", "I", True),
            ("text", "I", 'The text is "I".', True),
            ("text", "I", "I cannot say.", False),
            ("text", "A", "A card.", False),
            ("denial", "There is no star in the image.", "No star is here.", True),
            ("denial", "There is no star in the image.", "The star is red.", False),
            ("denial", "There is no star in the image.", "no: [[1, 2, 3, 4]]", False),
            ("objects", "Two red circles.", "The red circle and the red circle.", True),
            ("objects", "Nothing.", "The red circle.", False),
            ("objects", "Nothing.", "There is nothing left of the red circle.", True),
            ("image", "The first image.", "the second", False),
            ("image", "Both have the same number.", "The same number.", True),
            ("yes", "Yes.", "yes, it is", True),
            ("boxes", "[[0, 0, 100, 100]]", "[[0, 0, 100, 80]]", True),
            ("boxes", "[[0, 0, 100, 100]]", "[[0, 0, 100, 80], [1, 1, 2, 2]]", False),
        ],
    )
    def test_judgement(self, fact: str, expected: str, answer: str, right: bool):
        assert judge(fact, expected, answer) is right

    def test_overlap(self):
        assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
        assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0
        assert same_boxes([(0, 0, 10, 10), (20, 0, 30, 10)], [(20, 0, 30, 10), (0, 0, 10, 9)])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder, examples=300)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


class TestTokenizer:
    def test_special_tokens(self, tokenizer: Tokenizer):
        names = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
        assert [tokenizer.token_to_id(name) for name in names] == [0, 1, 2]
        for mark in MARKS:
            assert tokenizer.encode(f"x{mark}y").tokens[1] == mark
        assert 400 < tokenizer.get_vocab_size() <= 1000

    @pytest.mark.parametrize("text", ["7KX2P", "The text is 7KX2P.", " A", "A card with the text QQ1I0O."])
    def test_card_text_is_one_token_a_character(self, tokenizer: Tokenizer, text: str):
        tokens = tokenizer.encode(text).tokens
        for run in re.findall(r"\b[0-9A-Z]+\b", text):
            start = tokens.index(run[0])
            assert tokens[start : start + len(run)] == list(run)

    @pytest.mark.parametrize(
        "text",
        [
            "How many red circles are there?",
            "[[1, 22, 333, 999], [0, 0, 5, 7]]",
            "你好 🙂 isn't\tÜnïc\n\n ABcd \x00",
            "",
        ],
    )
    def test_any_text_survives(self, tokenizer: Tokenizer, text: str):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text

    def test_coordinates_take_a_token_a_digit_and_one_between(self, tokenizer: Tokenizer):
        assert tokenizer.encode("[[12, 3, 4, 5]]").tokens == ["[[", "1", "2", ",Ġ", "3", ",Ġ", "4", ",Ġ", "5", "]]"]

    def test_transformers_loads_the_same_tokenizer(self, tmp_path):
        from transformers import AutoTokenizer

        ours = build_tokenizer(tmp_path, examples=100)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        text = "<|User|>: <image>\n<|grounding|>Locate <|ref|>the red circle<|/ref|>.\n\n<|Assistant|>: 7KX2P"
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == ours.encode(text).ids
        assert theirs.decode(ids) == text
        assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
        assert theirs.model_max_length == 2048
