"""The data and the arithmetic of imagegpt-nano: pictures, palette, baselines, judge, a few steps, the measurement."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from modelwright import ImageGPTForCausalImageModeling
from modelwright.configs.run import DataPart, RunConfig, SourcePart
from modelwright.data.encoding import encoder_of
from modelwright.data.sources import open_source
from modelwright.processing.pixels import nearest
from modelwright.training.optimizers import Optimizers, Steered, kinds_of
from recipes.imagegpt_nano import evaluate, figure, train
from recipes.imagegpt_nano.baselines import COLOURS as COUNT
from recipes.imagegpt_nano.baselines import bits_of_table, neighbours, positions
from recipes.imagegpt_nano.draw import PIXELS, SIDE, Pictures, as_images, draw_labels, draw_pictures, join_halves
from recipes.imagegpt_nano.evaluate import pixel_loss
from recipes.imagegpt_nano.glyphs import LABELS
from recipes.imagegpt_nano.judge import FILE, NEITHER, Judge, load_judge, spliced
from recipes.imagegpt_nano.model import START, build_config, build_processor, save
from recipes.imagegpt_nano.palette import CLUSTERS, COLOURS, SCHEMES, STEPS, TOKENS


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return draw_pictures(np.random.default_rng(5), 400)


@pytest.fixture
def model() -> ImageGPTForCausalImageModeling:
    torch.manual_seed(0)
    return ImageGPTForCausalImageModeling(build_config(width=16, layers=1, heads=2))


class TestPalette:
    def test_no_more_than_32_distinct_colours(self):
        assert COLOURS.shape == (30, 3) and len(np.unique(COLOURS, axis=0)) == 30
        assert CLUSTERS.min() >= -1 and CLUSTERS.max() <= 1

    def test_a_scheme_goes_from_its_paper_to_its_ink_in_equal_steps(self):
        for (paper, ink), tokens in zip(SCHEMES, TOKENS, strict=True):
            wanted = np.linspace(paper, ink, STEPS + 1)
            np.testing.assert_allclose(COLOURS[tokens], wanted, atol=1)

    def test_every_colour_is_its_own_nearest(self):
        assert nearest(CLUSTERS, CLUSTERS).tolist() == list(range(len(CLUSTERS)))

    def test_the_processor_reads_a_drawn_picture_as_its_tokens(self, pictures: Pictures):
        processor = build_processor()
        images = [Image.fromarray(picture) for picture in as_images(pictures.tokens[:20])]
        ids = processor(images, return_tensors="np")["input_ids"]
        np.testing.assert_array_equal(ids, pictures.tokens[:20])
        for decoded, image in zip(processor.decode(ids), images, strict=True):
            assert decoded.tobytes() == image.tobytes()


class TestDrawing:
    def test_the_same_seed_draws_the_same_and_another_does_not(self, pictures: Pictures):
        again = draw_pictures(np.random.default_rng(5), 400)
        np.testing.assert_array_equal(again.tokens, pictures.tokens)
        np.testing.assert_array_equal(again.labels, pictures.labels)
        assert (draw_pictures(np.random.default_rng(6), 400).tokens != pictures.tokens).any(axis=1).mean() > 0.99

    def test_only_colours_of_the_scheme_are_used_and_both_its_ends(self, pictures: Pictures):
        for tokens, scheme in zip(pictures.tokens, pictures.schemes, strict=True):
            assert set(tokens) <= set(TOKENS[scheme])
            assert {TOKENS[scheme][0], TOKENS[scheme][STEPS]} <= set(tokens)

    def test_seven_in_ten_are_digits_and_all_labels_and_schemes_occur_alike(self, pictures: Pictures):
        assert (pictures.labels < 10).mean() == pytest.approx(0.7, abs=0.07)
        digits = np.bincount(pictures.labels, minlength=len(LABELS))[:10]
        shapes = np.bincount(pictures.labels, minlength=len(LABELS))[10:]
        schemes = np.bincount(pictures.schemes, minlength=len(SCHEMES))
        for counts in (digits, shapes, schemes):
            assert counts.min() > counts.mean() / 2 and counts.max() < counts.mean() * 2

    def test_things_keep_off_the_border(self, pictures: Pictures):
        grid = pictures.tokens.reshape(-1, SIDE, SIDE)
        border = np.concatenate([grid[:, 0], grid[:, -1], grid[:, :, 0], grid[:, :, -1]], axis=1)
        assert (border == TOKENS[pictures.schemes][:, :1]).mean() > 0.99

    def test_both_halves_of_every_picture_show_something(self, pictures: Pictures):
        inked = pictures.tokens != TOKENS[pictures.schemes][:, :1]
        assert inked[:, : PIXELS // 2].sum(axis=1).min() > 5
        assert inked[:, PIXELS // 2 :].sum(axis=1).min() > 5

    def test_no_two_pictures_of_one_thing_are_drawn_alike(self):
        threes = draw_labels(np.random.default_rng(0), np.full(50, 3)).recoloured(np.zeros(50, np.int64))
        assert len(np.unique(threes.tokens, axis=0)) == 50

    def test_recolouring_changes_the_colours_alone(self, pictures: Pictures):
        other = pictures.recoloured((pictures.schemes + 1) % len(SCHEMES))
        assert (other.tokens != pictures.tokens).any(axis=1).all()
        np.testing.assert_array_equal(other.recoloured(pictures.schemes).tokens, pictures.tokens)

    def test_halves_are_joined_at_the_row(self):
        upper, lower = np.zeros((1, PIXELS), np.int64), np.ones((1, PIXELS), np.int64)
        assert join_halves(upper, lower).reshape(SIDE, SIDE).sum(axis=1).tolist() == [0] * 10 + [SIDE] * 10
        assert join_halves(upper, lower, row=3).sum() == 17 * SIDE


class TestBaselines:
    def test_a_histogram_of_known_counts_gives_known_bits(self):
        known = np.array([[0, 1], [0, 2], [0, 1], [0, 2]])  # always 0, then 1 or 2
        fresh = np.array([[0, 1], [0, 2]])
        bits = bits_of_table(known, positions(known), fresh, positions(fresh), smoothing=1e-12)
        assert bits == pytest.approx(0.5)  # no bit for the first pixel, one for the second

    def test_smoothing_adds_to_every_colour(self):
        known, fresh = np.array([[0, 0, 0]]), np.array([[1]])
        contexts = np.zeros_like(known), np.zeros_like(fresh)
        bits = bits_of_table(known, contexts[0], fresh, contexts[1], smoothing=0.5)
        assert bits == pytest.approx(-math.log2(0.5 / (3 + 0.5 * COUNT)))

    def test_an_unseen_context_is_uniform(self):
        bits = bits_of_table(np.array([[0]]), np.array([[0]]), np.array([[0]]), np.array([[1]]), smoothing=0.5)
        assert bits == pytest.approx(math.log2(COUNT))

    def test_neighbours_are_those_to_the_left_and_above(self):
        tokens = np.arange(PIXELS)[None] % COUNT
        contexts = neighbours(tokens).reshape(SIDE, SIDE)
        assert contexts[0, 0] == COUNT * (COUNT + 1) + COUNT
        assert contexts[0, 3] == 2 * (COUNT + 1) + COUNT
        assert contexts[2, 0] == COUNT * (COUNT + 1) + SIDE % COUNT
        assert contexts[2, 5] == (2 * SIDE + 4) % COUNT * (COUNT + 1) + (SIDE + 5) % COUNT

    def test_neighbours_foresee_more_than_positions(self, pictures: Pictures):
        known, fresh = pictures.tokens[:300], pictures.tokens[300:]
        by_place = bits_of_table(known, positions(known), fresh, positions(fresh))
        by_side = bits_of_table(known, neighbours(known), fresh, neighbours(fresh))
        assert by_side < by_place / 2 < math.log2(COUNT) / 2


class TestJudge:
    def test_spliced_pictures_are_neither_and_the_others_stay(self, pictures: Pictures):
        tokens, labels = spliced(np.random.default_rng(0), pictures)
        changed = (tokens != pictures.tokens).any(axis=1)
        assert 0.15 < (labels == NEITHER).mean() < 0.3
        assert not changed[labels != NEITHER].any() and changed[labels == NEITHER].mean() > 0.95
        np.testing.assert_array_equal(labels[labels != NEITHER], pictures.labels[labels != NEITHER])
        for row, scheme in zip(tokens, pictures.schemes, strict=True):
            assert set(row) <= set(TOKENS[scheme])

    def test_the_judge_we_keep_is_small_and_names_fresh_pictures(self, pictures: Pictures):
        assert FILE.stat().st_size < 200_000
        judge = load_judge()
        assert (judge.labels(pictures.tokens) == pictures.labels).mean() > 0.95
        tokens, labels = spliced(np.random.default_rng(0), pictures)
        assert (judge.labels(tokens) == NEITHER)[labels == NEITHER].mean() > 0.7


class TestTraining:
    def test_the_start_token_follows_the_colours(self, model):
        assert model.config.start_token_id == START == len(COLOURS)

    def test_the_shipped_shape_is_below_three_megabytes(self):
        with torch.device("meta"):
            shipped = ImageGPTForCausalImageModeling(build_config())
        assert 2 * shipped.num_parameters() < 3_000_000

    def test_every_pixel_is_foreseen_from_those_before_it_alone(self, model):
        tokens = torch.from_numpy(draw_pictures(np.random.default_rng(0), 2).tokens)
        other = tokens.clone()
        other[:, 250] = (other[:, 250] + 1) % START
        with torch.no_grad():
            losses, changed = pixel_loss(model, tokens), pixel_loss(model, other)
        assert losses.shape == (2, PIXELS)
        torch.testing.assert_close(losses[:, :250], changed[:, :250])
        assert (losses[:, 250:] != changed[:, 250:]).any(dim=1).all()

    def test_but_for_the_last_pixel_it_is_the_models_own_loss(self, model):
        tokens = torch.from_numpy(draw_pictures(np.random.default_rng(0), 2).tokens)
        rows = torch.cat([torch.full((2, 1), START), tokens[:, :-1]], dim=1)
        with torch.no_grad():
            torch.testing.assert_close(pixel_loss(model, tokens)[:, :-1].mean(), model(rows, labels=rows).loss)

    def test_files_hold_the_pictures_of_their_seed_and_are_drawn_once(self, tmp_path):
        for folder, seed in (("a", 0), ("b", 0), ("c", 1000)):
            train.write_pictures(tmp_path / folder, 5, seed, shard=3)
        one, again, other = (sorted((tmp_path / folder).iterdir()) for folder in "abc")
        assert [file.name for file in one] == ["pictures-0000.tar", "pictures-0001.tar"]
        assert [file.read_bytes() for file in one] == [file.read_bytes() for file in again]
        assert one[0].read_bytes() != other[0].read_bytes()
        written = one[0].stat().st_mtime_ns
        train.write_pictures(tmp_path / "a", 8, 0, shard=3)
        assert one[0].stat().st_mtime_ns == written and len(list((tmp_path / "a").iterdir())) == 3

    def test_training_reads_the_drawn_tokens_from_the_files(self, tmp_path):
        train.write_pictures(tmp_path, 4, 7)
        source = open_source(SourcePart(path="pictures-*.tar"), None, tmp_path)
        encode = encoder_of(build_processor(), DataPart(seq_length=512))
        drawn = draw_pictures(np.random.default_rng([7, 0]), 4).tokens
        for number in range(4):
            document = encode(source[number])
            assert document.ids[0] == START
            np.testing.assert_array_equal(document.labels[1:], drawn[number])

    def test_one_command_draws_trains_and_writes_the_folder(self, tmp_path, monkeypatch):
        small = build_config(width=16, layers=1, heads=2)
        monkeypatch.setattr(train, "build_config", lambda: small)
        keys = ["optimizer.lr=1e-2", "batch.micro=4", "batch.global=4", "data.workers=0", "log.every=1"]
        monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path), "--pictures", "40", *keys])
        train.main()
        rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        losses = [row["lm"] for row in rows if "lm" in row]
        assert len(losses) == 10  # each picture once
        assert losses[0] == pytest.approx(math.log(START), abs=0.15) and losses[-1] < losses[0] - 0.3
        trained = ImageGPTForCausalImageModeling.from_pretrained(tmp_path, dtype=torch.float32)
        exported = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "run" / "export", dtype=torch.float32)
        for name, tensor in trained.state_dict().items():
            torch.testing.assert_close(tensor, exported.state_dict()[name].bfloat16().float())

    def test_the_run_leaves_the_tables_of_tokens_and_places_to_adamw(self, model):
        run = RunConfig.read(train.RUN)
        decaying, hidden = kinds_of(model)
        steered = [
            Steered(name, each, "all", None, name in decaying, name in hidden)
            for name, each in model.named_parameters()
        ]
        muon, adamw = Optimizers(run.optimizer, steered).all
        assert sum(len(group["params"]) for group in muon.param_groups) == 4  # one block's matrices
        tables = {id(parameter) for group in adamw.param_groups for parameter in group["params"]}
        assert {id(model.transformer.wte.weight), id(model.transformer.wpe.weight)} <= tables


class TestMeasuring:
    def test_completions_keep_what_was_given_and_follow_their_seed(self, model):
        tokens = draw_pictures(np.random.default_rng(0), 3).tokens
        model.eval()
        kept = PIXELS - 10
        one, again, other = (evaluate.completions(model, tokens, 2, seed, kept) for seed in (1, 1, 2))
        assert one.shape == tokens.shape and one.max() < START
        np.testing.assert_array_equal(one[:, :kept], tokens[:, :kept])
        np.testing.assert_array_equal(one, again)
        assert (one != other).any()

    def test_a_model_that_foresees_all_colours_alike_needs_their_logarithm(self, model):
        with torch.no_grad():
            model.lm_head.weight.zero_()
        tokens = draw_pictures(np.random.default_rng(0), 3).tokens
        assert evaluate.bits_of_model(model, tokens, batch=2) == pytest.approx(math.log2(START), rel=1e-5)

    def test_the_file_beside_the_weights_has_both_claims(self, model, tmp_path, monkeypatch):
        save(model, tmp_path)
        monkeypatch.setattr(evaluate, "load_judge", Judge)
        monkeypatch.setattr(evaluate, "complete", _continue_with_paper)
        arguments = ["--count", "1", "--pictures", "4", "--known", "50", "--batch", "10"]
        monkeypatch.setattr("sys.argv", ["evaluate", str(tmp_path), *arguments])
        evaluate.main()
        measured = json.loads((tmp_path / "accuracy.json").read_text("utf-8"))
        assert measured.keys() == {"seed", "dtype", "accuracy", "completions", "bits_per_pixel"}
        assert measured["accuracy"].keys() == {"completed_digits"}
        assert 0 <= measured["accuracy"]["completed_digits"] <= 1
        assert measured["bits_per_pixel"]["model"] == pytest.approx(math.log2(START), abs=0.2)
        assert measured["bits_per_pixel"].keys() == {"pictures", "model", "histogram", "neighbours"}
        named = measured["completions"]["named_right"]
        assert named.keys() == {"completed", "true", "exchanged"}
        assert all(shares.keys() == {"all", *"0123456789"} for shares in named.values())

    def test_the_figure_shows_given_halves_and_completions(self, pictures: Pictures):
        true = pictures.tokens[:3]
        sheet = np.asarray(figure.arrange(true, np.stack([true, true]), zoom=1))
        step, top = SIDE + figure.GAP, figure.GAP
        assert sheet.shape == (4 * step + figure.GAP + figure.BREAK, 3 * step + figure.GAP, 3)
        np.testing.assert_array_equal(sheet[top : top + SIDE, top : top + SIDE], as_images(true)[0])
        assert (sheet[top + step + SIDE // 2 : top + step + SIDE, top : top + SIDE] == figure.EMPTY).all()
        below = top + 2 * step + figure.BREAK
        np.testing.assert_array_equal(sheet[below : below + SIDE, top : top + SIDE], as_images(true)[0])


def test_the_folder_is_official_and_small(model, tmp_path):
    save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["model_type"] == "imagegpt" and config["architectures"] == ["ImageGPTForCausalImageModeling"]
    assert {"model.safetensors", "preprocessor_config.json", "generation_config.json"} <= {
        file.name for file in tmp_path.iterdir()
    }
    again = ImageGPTForCausalImageModeling.from_pretrained(tmp_path, dtype=torch.float32)
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name].bfloat16().float())


def _continue_with_paper(model, rows: torch.Tensor, new_tokens: int, **sampling) -> torch.Tensor:
    return torch.cat([rows, torch.zeros(len(rows), new_tokens, dtype=torch.long)], dim=1)
