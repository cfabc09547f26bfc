"""Bytes on one rank, reckoned by hand for small models: serving, training, recomputation, and what a layout divides."""

from dataclasses import replace

import pytest

from modelwright.planner.activations import Kept, alive_in_prefill, kept_for_backward, score_bytes
from modelwright.planner.counting import count
from modelwright.planner.layout import Layout
from modelwright.planner.memory import Workload, kv_bytes_per_token, peak_memory, stage_memory, weight_bytes
from modelwright.planner.precision import Precision
from tests.planner.small import deepseek, llama

BF16, FP32 = Precision.uniform("bfloat16"), Precision.uniform("float32")
DIM, HEADS, KV_HEADS, HEAD, WIDTH, VOCAB, LAYERS = 8, 4, 2, 2, 16, 32, 2
ATTENTION = DIM * HEADS * HEAD * 2 + 2 * DIM * KV_HEADS * HEAD
LAYER = ATTENTION + 3 * DIM * WIDTH + 2 * DIM
PARAMETERS = LAYERS * LAYER + 2 * VOCAB * DIM + DIM


def test_weights_are_their_parameters_in_their_types():
    counts = count(llama())
    assert weight_bytes(counts, FP32) == 4 * PARAMETERS
    mixed = Precision(weights="bfloat16", embedding="float16", norms="float32", compute="bfloat16", kv="bfloat16")
    assert weight_bytes(counts, mixed) == 2 * PARAMETERS + 2 * (2 * LAYERS + 1) * DIM


def test_quantization_leaves_embedding_head_and_norms_alone():
    outputs = HEADS * HEAD + 2 * KV_HEADS * HEAD + DIM + 2 * WIDTH + DIM  # rows of q, k, v, o, gate, up, down
    matrices = LAYERS * (ATTENTION + 3 * DIM * WIDTH)
    int8 = weight_bytes(count(llama()), replace(BF16, quant="int8"))
    assert int8 == 2 * (PARAMETERS - matrices) + matrices + LAYERS * outputs * 4


def test_the_cache_of_a_token():
    assert kv_bytes_per_token(count(llama()), BF16) == LAYERS * 2 * KV_HEADS * HEAD * 2
    latent = count(deepseek())
    assert kv_bytes_per_token(latent, FP32) == 3 * (8 + 2) * 4  # rank and rotated key, three layers
    assert kv_bytes_per_token(latent, Precision.uniform("float32", kv="int8")) == 3 * ((8 + 2) + 2 * 4)


def test_serving_is_weights_cache_and_the_widest_moment():
    counts = count(llama())
    memory = peak_memory(counts, Layout(), BF16, Workload(context=10, batch=3))
    stream = 2 * DIM
    feed_forward = stream + 3 * WIDTH
    attention = stream + HEAD * (3 * HEADS + 3 * KV_HEADS)
    assert feed_forward > attention
    logits = 3 * VOCAB * (2 + 4)
    assert memory.kv == 30 * LAYERS * 2 * KV_HEADS * HEAD * 2
    assert memory.workspace == 30 * feed_forward * 2 + logits
    assert memory.total == weight_bytes(counts, BF16) + memory.kv + memory.workspace


def test_written_out_attention_adds_two_float32_matrices_of_scores():
    counts, work = count(llama()), Workload(context=100, batch=2)
    fused, written = (peak_memory(counts, Layout(), BF16, replace(work, explicit=flag)) for flag in (False, True))
    assert written.workspace - fused.workspace == 2 * 4 * 2 * HEADS * 100 * 100
    assert score_bytes(counts.layers[0], batch=2, tokens=100, keys=100) == 2 * 4 * 2 * HEADS * 100 * 100


def test_training_keeps_what_each_operation_reads_again():
    counts = count(llama())
    memory = peak_memory(counts, Layout(), BF16, Workload(context=10, batch=3, optimizer="adamw"))
    norm = DIM * (4 + 2) + 4  # the input in float32, the rounded quotient, and what divides a token
    turned = 4 * HEAD * 2  # cosines and sines of queries and keys
    attention = 2 * DIM + turned + 2 * HEAD * (2 * HEADS + 2 * KV_HEADS) + 4 * HEADS
    feed_forward = 2 * DIM + 2 * 4 * WIDTH
    layer = 2 * norm + attention + feed_forward
    outside = 8 + norm + 2 * DIM + 4 * VOCAB + 8  # which token, the last norm, what the head reads, softmax and label
    assert memory.activations == 30 * (LAYERS * layer + outside)
    assert memory.gradients == memory.weights == 2 * PARAMETERS
    assert memory.optimizer == (8 + 4) * PARAMETERS  # two moments and the float32 copy
    assert memory.kv == 0
    assert memory.workspace == 30 * VOCAB * (2 + 4)  # the logits and their gradient


def test_recomputing_keeps_the_layers_inputs_and_one_layer_for_a_moment():
    counts = count(llama())
    work = Workload(context=10, optimizer="adamw", recompute=True)
    memory = peak_memory(counts, Layout(), BF16, work)
    norm = DIM * (4 + 2) + 4
    assert memory.activations == 10 * (LAYERS * DIM * 2 + 8 + norm + 2 * DIM + 4 * VOCAB + 8)
    assert memory.workspace == 10 * kept_for_backward(counts.layers[0], 2).on_rank()


@pytest.mark.parametrize(
    ("optimizer", "low", "full"), [("adamw", 12, 8), ("lion", 8, 4), ("sgd", 4, 0), ("adamw8bit", 6.03125, 2.03125)]
)
def test_optimizers_keep_states_and_a_copy_of_short_weights(optimizer, low, full):
    counts, work = count(llama()), Workload(context=1, optimizer=optimizer)
    assert peak_memory(counts, Layout(), BF16, work).optimizer == pytest.approx(low * PARAMETERS, abs=1)
    assert peak_memory(counts, Layout(), FP32, work).optimizer == pytest.approx(full * PARAMETERS, abs=1)


def test_tensor_parallel_ranks_cut_matrices_heads_and_vocabulary():
    memory = peak_memory(count(llama()), Layout(model=2), BF16, Workload(context=10))
    norms = (2 * LAYERS + 1) * DIM
    assert memory.weights == 2 * ((PARAMETERS - norms) // 2 + norms)
    assert memory.kv == 10 * LAYERS * 2 * HEAD * 2  # one key head


def test_expert_ranks_share_the_routed_experts_alone():
    counts = count(deepseek())
    whole, shared = (
        peak_memory(counts, layout, FP32, Workload(context=10)).weights
        for layout in (Layout(), Layout(data=4, expert=4))
    )
    assert whole - shared == counts.parameters.routed_experts * 4 * 3 // 4


def test_a_sharded_step_divides_states_and_gathers_a_layer():
    counts, work = count(llama()), Workload(context=10, optimizer="adamw")
    whole, sharded = (peak_memory(counts, Layout(data=4, sharded=flag), BF16, work) for flag in (False, True))
    assert sharded.weights == whole.weights // 4
    assert sharded.optimizer == whole.optimizer // 4
    assert sharded.workspace == 2 * 2 * LAYER > whole.workspace
    assert sharded.activations == whole.activations


def test_stages_hold_their_layers_and_the_first_more_micro_batches():
    counts, work = count(llama()), Workload(context=10, optimizer="sgd")
    first, last = (stage_memory(counts, Layout(pipeline=2), stage, BF16, work) for stage in (0, 1))
    assert first.weights == 2 * (LAYER + VOCAB * DIM)
    assert last.weights == 2 * (LAYER + VOCAB * DIM + DIM)
    layer = 10 * kept_for_backward(counts.layers[0], 2).on_rank()
    norm = DIM * (4 + 2) + 4
    assert first.activations == 2 * (layer + 10 * 8)
    assert last.activations == layer + 10 * (norm + 2 * DIM + 4 * VOCAB + 8)


def test_the_last_stage_holds_a_copy_of_a_tied_head():
    counts = count(llama(tie_word_embeddings=True))
    last = stage_memory(counts, Layout(pipeline=2), 1, BF16, Workload(context=1))
    assert last.weights == 2 * (LAYER + VOCAB * DIM + DIM)
    assert weight_bytes(counts, BF16) == 2 * (PARAMETERS - VOCAB * DIM)


def test_context_ranks_hold_slices():
    whole, slices = (
        peak_memory(count(llama()), layout, BF16, Workload(context=64)) for layout in (Layout(), Layout(context=4))
    )
    assert (slices.kv, slices.weights) == (whole.kv // 4, whole.weights)


def test_experts_keep_rows_for_each_choice():
    layer = count(deepseek()).layers[1]
    norms = 2 * (16 * 8 + 4) + 8 * 8 + 4
    latent = Kept(4 * (16 + 8 + 2), 4 * 4 * (2 * (4 + 2) + 4 + 4 + 4) + 4 * 4)
    routed = Kept(4 * 3 * 2 * 16 + 2 * (3 * 8 + 4), 4 * 2 * 4 * 8)  # rows gathered, computed and put back in order
    shared = Kept(4 * 16, 4 * 4 * 8)
    assert kept_for_backward(layer, 4) == Kept(norms) + latent + shared + routed + Kept(4 * 8)
    assert alive_in_prefill(layer).whole >= 2 * 16
