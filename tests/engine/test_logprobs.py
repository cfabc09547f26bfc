"""Log-probabilities against torch's log-softmax, row by row."""

import pytest
import torch

from modelwright.engine.logprobs import token_logprobs


@pytest.mark.parametrize("rows", [1, 3, 150])
def test_they_are_the_log_softmax_with_ranks_and_the_best(rows):
    torch.manual_seed(0)
    logits, tokens = torch.randn(rows, 50), torch.randint(50, (rows,))
    expected = logits.log_softmax(-1)
    for row, found in enumerate(token_logprobs(logits, tokens, 3)):
        order = expected[row].argsort(descending=True).tolist()
        assert found.token == tokens[row]
        assert found.logprob == pytest.approx(expected[row, tokens[row]].item(), abs=1e-6)
        assert order[found.rank - 1] == found.token
        assert [id_ for id_, _ in found.top] == order[:3]
        assert [logprob for _, logprob in found.top] == pytest.approx(expected[row, order[:3]].tolist(), abs=1e-6)


def test_more_alternatives_than_tokens_are_all_tokens_and_none_are_none():
    logits = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.bfloat16)
    [everything] = token_logprobs(logits, torch.tensor([0]), 20)
    assert [id_ for id_, _ in everything.top] == [2, 1, 0] and everything.rank == 3
    assert sum(torch.tensor([logprob for _, logprob in everything.top]).exp().tolist()) == pytest.approx(1)
    [alone] = token_logprobs(logits, torch.tensor([2]), 0)
    assert alone.top == () and alone.rank == 1


def test_no_rows_have_none():
    assert token_logprobs(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), 2) == ()
