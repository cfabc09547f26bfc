"""DeepSeek-VL2's own part: pictures among the tokens, how the tower is fed, layouts, and what is refused."""

import math

import pytest
import torch

from modelwright.errors import RequestError
from modelwright.families.deepseek_vl2.tiles import picture_rows
from tests.fakes import MHA, TILE, tiny_vl2, tokens, vl2_inputs

close = torch.testing.assert_close


@pytest.fixture
def model():
    return tiny_vl2()


@pytest.fixture
def inputs():
    return vl2_inputs([[(2, 1), (1, 1)], [], [(1, 2)]])


def rows_of_1d(grid):
    """Rows of a picture in the 1D layout of the fakes: 2 x 2 features and an indicator for each tile."""
    return (1 + grid[0] * grid[1]) * (1 + 4)


def test_rows_of_pictures_stand_where_the_mask_says(model, inputs):
    embeds = model.prepare_inputs_embeds(**inputs)
    mask = inputs["images_seq_mask"]
    assert torch.equal(embeds[~mask], model.get_input_embeddings()(inputs["input_ids"])[~mask])
    tiles = inputs["images"]
    features = [model.projector(model.vision(part)) for part in (tiles[0, :3], tiles[0, 3:5], tiles[2, :3])]
    layout = model._layout()
    rows = [picture_rows(part, grid, layout) for part, grid in zip(features, [(2, 1), (1, 1), (1, 2)], strict=True)]
    close(embeds[mask], torch.cat(rows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bound", [1, 2, 3, 100])
def test_the_tower_runs_once_over_the_batch_in_bounded_chunks(bound, model, inputs):
    whole, seen = model.prepare_inputs_embeds(**inputs), []
    model.config.vision_batch_size = bound
    model.vision.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    close(model.prepare_inputs_embeds(**inputs), whole, atol=1e-5, rtol=1e-5)
    assert seen == [min(bound, 8 - start) for start in range(0, 8, bound)]  # 8 tiles, padding not among them


def test_text_alone_needs_no_pictures(model):
    ids = tokens(2, 5)
    assert torch.equal(model(ids).logits, model.language(ids).logits)
    blank = {
        "images": torch.zeros(2, 1, 3, TILE, TILE),
        "images_seq_mask": torch.zeros(2, 5, dtype=torch.bool),
        "images_spatial_crop": torch.zeros(2, 1, 2, dtype=torch.long),
    }
    model.vision.register_forward_pre_hook(lambda *_: pytest.fail("there is nothing to look at"))
    assert torch.equal(model(ids, **blank).logits, model.language(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32])
def test_the_mask_may_come_as_numbers(dtype, model, inputs):
    wanted = model.prepare_inputs_embeds(**inputs)
    inputs["images_seq_mask"] = inputs["images_seq_mask"].to(dtype)
    assert torch.equal(model.prepare_inputs_embeds(**inputs), wanted)


def test_the_rest_of_a_processors_output_may_come_along(model, inputs):
    extras = {"labels": inputs["input_ids"], "num_image_tokens": [1]}
    assert torch.equal(model.prepare_inputs_embeds(**inputs, **extras), model.prepare_inputs_embeds(**inputs))


@pytest.mark.parametrize("language", [{}, MHA], ids=["latent", "mha"])
def test_a_padded_batch_gives_each_row_as_alone(language, inputs):
    model = tiny_vl2(language=language)
    found = model(**inputs).logits
    for i in range(3):
        own = inputs["attention_mask"][i].bool()
        alone = {name: part[i : i + 1] for name, part in inputs.items()}
        alone |= {name: alone[name][:, own] for name in ("input_ids", "attention_mask", "images_seq_mask")}
        close(found[i, own], model(**alone).logits[0], atol=1e-5, rtol=1e-5)


def test_an_embedding_whose_output_requires_gradients_is_not_written_into(model, inputs):
    model.requires_grad_(False)
    model.enable_input_require_grads()  # as PEFT does before gradient checkpointing
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda _, __, output: seen.append(output))
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    leaf = seen[0]
    assert leaf.is_leaf and leaf.grad is not None
    assert leaf.grad[inputs["images_seq_mask"]].abs().max() == 0
    assert leaf.grad[0, ~inputs["images_seq_mask"][0]].abs().max() > 0


def test_labels_count_as_in_the_decoder(model, inputs):
    labels = inputs["input_ids"].masked_fill(inputs["images_seq_mask"] | (inputs["attention_mask"] == 0), -100)
    result = model(**inputs, labels=labels)
    labels[:, 1:][inputs["attention_mask"].diff(dim=1) == 1] = -100  # padding foresees nothing
    wanted = torch.nn.functional.cross_entropy(result.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    close(result.loss, wanted)
    close(model(**inputs, labels=labels, num_items_in_batch=1).loss, wanted * (labels[:, 1:] != -100).sum())


def test_a_tuple_hidden_states_and_last_logits(model, inputs):
    assert isinstance(model(**inputs, return_dict=False), tuple)
    result = model(**inputs, output_hidden_states=True, logits_to_keep=1)
    assert torch.equal(result.hidden_states[0], model.prepare_inputs_embeds(**inputs))
    close(result.logits, model(**inputs).logits[:, -1:])


def test_the_global_view_may_come_last(inputs):
    head, tail = tiny_vl2(), tiny_vl2(global_view_pos="tail")
    tail.load_state_dict(head.state_dict())
    one = {name: part[2:] for name, part in inputs.items()}
    first, last = (model.prepare_inputs_embeds(**one)[one["images_seq_mask"]] for model in (head, tail))
    rows = 2 * 3  # the global view's two lines of two features and a newline
    assert torch.equal(first[rows], head.view_seperator)
    assert torch.equal(torch.cat((first[rows + 1 :], first[rows : rows + 1], first[:rows])), last)


@pytest.mark.parametrize("position", ["head", "tail"])
def test_the_1d_layout_marks_each_tile(position):
    model = tiny_vl2(tile_tag="1D", global_view_pos=position)
    assert model.tile_indicators.shape == (1 + 2, 32)  # the global view and the largest grid of the fakes
    assert not hasattr(model, "image_newline")
    inputs = vl2_inputs([[(2, 1)], [(1, 1)]], count=rows_of_1d)
    rows = model.prepare_inputs_embeds(**inputs)[0][inputs["images_seq_mask"][0]].unflatten(0, (3, 5))
    order = [0, 1, 2] if position == "head" else [1, 2, 0]
    assert torch.equal(rows[:, 0], model.tile_indicators[order])
    features = model.projector(model.vision(inputs["images"][0]))
    close(rows[:, 1:], features[order], atol=1e-5, rtol=1e-5)
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0).shape[0] == 2


def changed(inputs, **changes):
    return {name: part for name, part in (inputs | changes).items() if part is not None}


def test_places_and_rows_that_differ_in_number_are_refused(model, inputs):
    mask = inputs["images_seq_mask"].clone()
    mask[2, -1] = True
    match = r"row 2 has 20 image places in images_seq_mask and 19 image rows from its tiles"
    with pytest.raises(RequestError, match=match):
        model(**changed(inputs, images_seq_mask=mask))


def test_placeholders_without_pictures_are_refused(model, inputs):
    match = r"row 0 has \d+ image places in images_seq_mask and 0 image rows"
    with pytest.raises(RequestError, match=match):
        model(**changed(inputs, images=None, images_spatial_crop=None))
    with pytest.raises(RequestError, match=match):
        model(**changed(inputs, images_spatial_crop=torch.zeros(3, 1, 2, dtype=torch.long)))


@pytest.mark.parametrize("missing", ["images_seq_mask", "images_spatial_crop"])
def test_pictures_without_their_places_are_refused(missing, model, inputs):
    match = rf"images come with images_seq_mask and images_spatial_crop; {missing} is missing"
    with pytest.raises(RequestError, match=match):
        model(**changed(inputs, **{missing: None}))


def test_a_crop_of_more_tiles_than_there_are_is_refused(model, inputs):
    crops = inputs["images_spatial_crop"].clone()
    crops[0, 1] = torch.tensor([3, 1])
    with pytest.raises(RequestError, match="row 0 needs 7 tiles by images_spatial_crop and images holds 5"):
        model(**changed(inputs, images_spatial_crop=crops))


@pytest.mark.parametrize(
    ("name", "part", "shapes"),
    [
        ("images", torch.zeros(3, 3, TILE, TILE), r"\[3, 3, 8, 8\] and must have \[3, any, 3, 8, 8\]"),
        ("images", torch.zeros(3, 5, 3, 10, 8), r"\[3, 5, 3, 10, 8\] and must have \[3, any, 3, 8, 8\]"),
        ("images", torch.zeros(2, 5, 3, 8, 8), r"\[2, 5, 3, 8, 8\] and must have \[3, any, 3, 8, 8\]"),
        ("images_seq_mask", torch.ones(3, 4), r"\[3, 4\] and must have \[3, \d+\]"),
        ("images_spatial_crop", torch.ones(3, 2), r"\[3, 2\] and must have \[3, any, 2\]"),
    ],
)
def test_a_shape_that_fits_nothing_is_refused(name, part, shapes, model, inputs):
    with pytest.raises(RequestError, match=f"{name} has shape {shapes}"):
        model(**changed(inputs, **{name: part}))


@pytest.mark.parametrize("name", ["images", "images_seq_mask", "images_spatial_crop"])
def test_what_is_no_tensor_is_refused(name, model, inputs):
    with pytest.raises(RequestError, match=f'{name} must be a tensor, as return_tensors="pt" makes it, got list'):
        model(**changed(inputs, **{name: inputs[name].tolist()}))


def test_crops_of_another_type_are_refused(model, inputs):
    with pytest.raises(RequestError, match=r"images_spatial_crop must hold whole numbers, got torch\.bfloat16"):
        model(**changed(inputs, images_spatial_crop=inputs["images_spatial_crop"].bfloat16()))


def test_pictures_beside_embeddings_are_refused(model, inputs):
    embeds = model.prepare_inputs_embeds(**inputs)
    with pytest.raises(RequestError, match="pictures come with input_ids; inputs_embeds hold theirs already"):
        model(**changed(inputs, input_ids=None, inputs_embeds=embeds))
    with pytest.raises(RequestError, match="give input_ids or inputs_embeds, and not both"):
        model(input_ids=inputs["input_ids"], inputs_embeds=embeds)


def test_an_unknown_argument_is_refused(model, inputs):
    with pytest.raises(TypeError, match="unexpected keyword argument 'imagess'"):
        model(**inputs, imagess=1)


def test_marks_between_pictures_start_at_the_embeddings_scale():
    model = tiny_vl2(language={"hidden_size": 512}, projector_config={"n_embed": 512, "input_dim": 16})
    for mark in (model.image_newline, model.view_seperator):
        assert 0.7 < mark.std() * math.sqrt(512) < 1.3


def test_the_vocabulary_can_grow(model):
    model.resize_token_embeddings(70)
    assert model.get_input_embeddings().weight.shape == (70, 32)
    assert model.get_output_embeddings().weight.shape == (70, 32)
    assert model(tokens(1, 3, vocab=70)).logits.shape == (1, 3, 70)
    assert model.config.language_config.vocab_size == 70
