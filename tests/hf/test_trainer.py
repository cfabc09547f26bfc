"""transformers' Trainer drives our models: accumulation, the bias rule, checkpoints and going on from one."""

import pytest
import torch

from modelwright.families.deepseek_v2.model import DeepseekV2ForSequenceClassification
from modelwright.families.llama.model import LlamaForSequenceClassification
from tests.fakes import NOAUX, tiny_v2, tokens
from tests.llamas import tiny_llama
from tests.trainers import Rows, losses_of, make_trainer


class Labelled(Rows):
    """The same rows, each with a class."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": tokens(12, seed=index), "labels": torch.tensor(index % 2)}


def trainer(model, folder, steps, rows=None):
    rates = {"gradient_accumulation_steps": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    return make_trainer(model, folder, steps, rows, **rates, save_strategy="steps", save_steps=2)


@pytest.mark.slow
# The trainer reads the checkpoint's config by a class that calls the official name of a field an old one.
@pytest.mark.filterwarnings("ignore:`rope_scaling` is deprecated:FutureWarning")
def test_a_run_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(tmp_path):
    whole = tiny_v2(base=NOAUX)
    first = trainer(whole, tmp_path, steps=4)
    losses = losses_of(first)
    assert losses[-1] < losses[0]
    resumed = tiny_v2(base=NOAUX, seed=1)
    trainer(resumed, tmp_path, steps=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, parameter in resumed.named_parameters():
        torch.testing.assert_close(parameter, whole.get_parameter(name))


@pytest.mark.slow
def test_the_bias_moves_once_per_optimizer_step(tmp_path):
    model = tiny_v2(base=NOAUX, topk_bias_update_rate=0.25)
    run = trainer(model, tmp_path, steps=1)
    model.update_router_bias_with(run.create_optimizer())
    run.train()
    bias = model.model.layers[1].mlp.gate.e_score_correction_bias
    assert set(bias.abs().tolist()) <= {0.0, 0.25}
    assert bias.abs().max() == 0.25


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("build", "cls"), [(tiny_v2, DeepseekV2ForSequenceClassification), (tiny_llama, LlamaForSequenceClassification)]
)
def test_a_classifier_learns_its_rows(tmp_path, build, cls):
    run = trainer(build(cls, num_labels=2, pad_token_id=None), tmp_path, steps=12, rows=Labelled())
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < sum(losses[:3])
