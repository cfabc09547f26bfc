"""Layouts: they fill the devices, divide the model, come in order, and each rank of the one chosen fits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelwright.errors import ConfigError
from modelwright.planner.counting import count
from modelwright.planner.device import Devices
from modelwright.planner.layout import Layout, candidates, check_layout
from modelwright.planner.plan import plan
from tests.planner.small import deepseek, llama

MODELS = {"llama": llama(num_hidden_layers=5), "deepseek": deepseek(), "mha": deepseek(use_mla=False)}


@given(st.sampled_from(sorted(MODELS)), st.integers(1, 96), st.booleans())
def test_every_candidate_fills_the_devices_and_divides_the_model(name, ranks, training):
    counts = count(MODELS[name])
    found = list(candidates(counts, ranks, training=training))
    assert found, "data parallelism alone divides everything"
    assert len(set(found)) == len(found)
    for layout in found:
        assert layout.ranks == layout.data * layout.model * layout.pipeline * layout.context == ranks
        assert layout.data * layout.context * layout.model % (layout.expert * layout.expert_model) == 0
        assert training or not layout.sharded
        for layer in counts.layers:
            assert layer.attention.heads % layout.model == 0
        stages = layout.stages(len(counts.layers))
        assert [index for stage in stages for index in stage] == list(range(len(counts.layers)))
        assert min(map(len, stages)) >= 1 and max(map(len, stages)) - min(map(len, stages)) <= 1


@given(st.sampled_from(sorted(MODELS)), st.integers(1, 64), st.booleans())
def test_the_late_degrees_stay_small_the_last_one_first(name, ranks, training):
    order = [
        (layout.context, layout.pipeline, layout.model, layout.sharded, layout.expert)
        for layout in candidates(count(MODELS[name]), ranks, training=training)
    ]
    assert order == sorted(order)


@pytest.mark.slow
@given(
    st.sampled_from(sorted(MODELS)), st.integers(1, 24), st.integers(20_000, 400_000), st.booleans(), st.integers(1, 64)
)
def test_each_rank_of_a_layout_that_fits_does(name, ranks, memory, train, context):
    planned = plan(MODELS[name], devices=Devices(memory, ranks), train=train, context=context)
    assert planned.layout.ranks == ranks
    assert planned.ranks[0].first == 0 and planned.ranks[-1].last == ranks - 1
    needed = max(rank.memory.total for rank in planned.ranks)
    assert planned.fits == (needed <= memory)
    assert needed == planned.memory.total
    if planned.fits:
        largest = planned.largest_context
        assert largest is not None and largest >= context
        assert planned.memory_at(largest).total <= memory < planned.memory_at(largest + 1).total


def test_more_is_split_as_less_fits():
    config = deepseek()
    layouts = [
        str(plan(config, context=128, devices=Devices(memory, 8)).layout) for memory in (2**20, 150_000, 120_000)
    ]
    assert layouts[0] == "data 8 x model 1 x pipeline 1 x context 1, expert 1"
    assert layouts[1] == "data 8 x model 1 x pipeline 1 x context 1, expert 4"
    assert layouts[2] != layouts[1]


def test_the_experts_degree_of_a_config_is_kept():
    layout = plan(deepseek(ep_size=4), devices=Devices(2**30, 8)).layout
    assert (layout.expert, layout.data) == (4, 8)
    with pytest.raises(ConfigError, match="no layout of 2 devices with ep_size 4 divides the model"):
        plan(deepseek(ep_size=4), devices=Devices(2**30, 2))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(model=8), r"the number of attention heads \(4\) must be divisible by 8"),
        (Layout(model=4), r"the number of key-value heads \(2\) must be divisible by 4"),
        (Layout(pipeline=3), r"pipeline \(3\) must not exceed the number of layers \(2\)"),
        (Layout(data=2, expert=3), r"data x context x model \(2\) must be divisible by the ranks .* \(3 x 1\)"),
    ],
)
def test_a_layout_that_does_not_divide_the_model_is_refused(layout, message):
    with pytest.raises(ConfigError, match=message):
        check_layout(count(llama()), layout)


def test_experts_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"the number of experts \(8\) must be divisible by 3"):
        check_layout(count(deepseek()), Layout(data=3, expert=3))


def test_layers_are_dealt_evenly_or_as_stated():
    assert Layout(pipeline=3).stages(8) == (range(0, 3), range(3, 6), range(6, 8))
    assert Layout(pipeline=2, stage_layers=(3, 5)).stages(8) == (range(0, 3), range(3, 8))


def parallel(**degrees):
    return llama(num_hidden_layers=4, parallel_config=degrees)


def test_a_given_layout_is_respected():
    config = parallel(data_parallel=2, model_parallel=2, pipeline_stage=2, micro_batch_num=2)
    planned = plan(config, devices=Devices(2**30))
    assert str(planned.layout) == "data 2 x model 2 x pipeline 2 x context 1, expert 1"
    assert planned.devices == Devices(2**30, 8)
    assert [(rank.first, rank.last, rank.layers, rank.heads, rank.kv_heads) for rank in planned.ranks] == [
        (0, 3, range(0, 2), 2, 1),
        (4, 7, range(2, 4), 2, 1),
    ]


def test_a_given_layout_must_fill_the_devices():
    with pytest.raises(ConfigError) as error:
        plan(parallel(data_parallel=2, model_parallel=2), devices=Devices(2**30, 8))
    assert str(error.value) == (
        "devices (8) must be as many as parallel_config asks for (4: "
        "data 2 x model 2 x pipeline 1 x context 1, expert 1)"
    )


def test_a_given_layouts_offsets_deal_the_layers():
    config = llama(num_hidden_layers=5, offset=[1, 0], parallel_config={"pipeline_stage": 2, "micro_batch_num": 2})
    assert [len(rank.layers) for rank in plan(config).ranks] == [3, 2]


def test_the_ranks_product_is_large_without_delay():
    layout = plan(deepseek(), devices=Devices(2**30, 55440)).layout
    assert math.prod((layout.data, layout.model, layout.pipeline, layout.context)) == 55440
