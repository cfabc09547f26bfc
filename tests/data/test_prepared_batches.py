"""Steps of a run whose documents were prepared: the same tensors in the same order, and no row is tokenised again."""

import pytest
import torch
from PIL import Image

from modelwright.configs.run import DataPart
from modelwright.data.batches import held_out, open_batches
from modelwright.data.cache import key_of, prepare
from modelwright.data.encoding import encoder_of
from modelwright.data.encoding.tiled import TiledEncoder
from modelwright.data.identity import identity_of
from modelwright.data.sources import open_source
from modelwright.data.workers import Workers
from tests.checkpoints.tiny import write_vl2


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    from modelwright.families.deepseek_vl2.processor import DeepseekVLV2Processor

    return DeepseekVLV2Processor.from_pretrained(write_vl2(tmp_path_factory.mktemp("vl2")))


def settings(pack: str) -> DataPart:
    rows = {"train": ["rows.jsonl"], "eval": ["rows.jsonl"], "cache": "cache", "on_error": "skip"}
    return DataPart.of(rows | {"seq_length": 300, "pack": pack, "workers": 0, "window": 16}, "data")


def chat(number: int, **more):
    turns = [{"role": "user", "content": f"What comes after {number}?"}, {"role": "assistant", "content": "One more."}]
    return {"messages": turns} | more


@pytest.mark.parametrize("pack", ["documents", "none"])
def test_prepared_rows_are_the_same_steps_and_only_pictures_are_read_again(folder, processor, monkeypatch, pack):
    Image.new("RGB", (40, 30), "red").save(folder.path / "a.png")
    rows = [chat(number, **({"images": ["a.png"]} if number % 10 == 0 else {})) for number in range(150)]
    folder.write("rows.jsonl", rows[:77])
    with (folder.path / "rows.jsonl").open("a") as file:
        file.write('{"messages": 7}\n')
    part = settings(pack)
    encoder = encoder_of(processor, part)

    def steps(count=9):
        batches = open_batches(part, encoder, 1, 2, seed=5, base=folder.path)
        first = [next(batches) for _ in range(count)]
        return first, batches.steps_in(1), batches.state()

    before, length, state = steps()
    source = open_source(part.train[0], None, folder.path)
    prepared = prepare(
        source, Workers(encoder, 0), folder.path / "cache", key_of(source, identity_of(encoder)), skips=True
    )
    assert prepared.manifest["pictures"] == 8
    made = []
    real = TiledEncoder._document
    monkeypatch.setattr(
        TiledEncoder, "_document", lambda self, row, pixels: (made.append(row), real(self, row, pixels))[1]
    )
    after, again, state_after = steps()
    assert (length, state) == (again, state_after)
    for one, other in zip(before, after, strict=True):
        assert (one.counted, one.tokens, one.places, one.broken) == (
            other.counted,
            other.tokens,
            other.places,
            other.broken,
        )
        for first, second in zip(one.micro, other.micro, strict=True):
            assert first.keys() == second.keys()
            assert all(torch.equal(first[name], second[name]) for name in first)
    assert made and all(row.content.pictures for row in made)
    made.clear()
    [held] = held_out(part, encoder, base=folder.path).values()
    assert len([*held]) == 77 and all(row.content.pictures for row in made)
