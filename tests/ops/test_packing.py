"""Documents in a row: their numbers, positions and what each token sees, against a loop."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from modelwright.ops.packing import document_mask, documents_of, positions_in_documents


def test_an_end_closes_the_document_it_stands_in():
    ids = torch.tensor([[5, 2, 6, 7, 3, 8], [2, 2, 5, 5, 5, 2]])
    assert documents_of(ids, [2, 3]).tolist() == [[0, 0, 1, 1, 1, 2], [0, 1, 2, 2, 2, 2]]
    assert documents_of(ids, []).tolist() == [[0] * 6] * 2
    assert positions_in_documents(documents_of(ids, [2, 3])).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 0, 1, 2, 3]]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 11))
def test_a_token_sees_what_came_before_it_in_its_document(row, past):
    ids, past = torch.tensor([row]), min(past, len(row) - 1)
    documents = documents_of(ids, [2])
    sees = document_mask(documents, past)[0, 0]
    assert sees.shape == (len(row) - past, len(row))
    for query in range(past, len(row)):
        start = max((i + 1 for i in range(query) if row[i] == 2), default=0)
        assert sees[query - past].tolist() == [start <= key <= query for key in range(len(row))]
        assert positions_in_documents(documents)[0, query] == query - start
