"""Laws of the order of rows: a function of seed, stage and epoch, the same for any ranks and workers."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curlora_lab.data import ClassificationData, DataSource, PositionSampler
from curlora_lab.data.loading import make_loader

SIZES = {"rows": st.integers(1, 60), "batch_size": st.integers(1, 13), "world": st.integers(1, 5)}


def flat(sampler: PositionSampler) -> list[int]:
    return [row for batch in sampler for row, _ in batch]


@given(**SIZES, seed=st.integers(0, 3), stage=st.integers(0, 3), epoch=st.integers(0, 3))
def test_an_epoch_is_a_permutation_and_ranks_share_each_batch(
    rows: int, batch_size: int, world: int, seed: int, stage: int, epoch: int
) -> None:
    whole = PositionSampler(rows, batch_size=batch_size, seed=seed, stage=stage, shuffle=True)
    whole.set_epoch(epoch)
    assert sorted(flat(whole)) == list(range(rows))
    batches = [[row for row, _ in batch] for batch in whole]
    assert all(weight == 1 for batch in whole for _, weight in batch)
    ranks = []
    for rank in range(world):
        sampler = PositionSampler(
            rows, batch_size=batch_size, seed=seed, stage=stage, shuffle=True, rank=rank, world_size=world
        )
        sampler.set_epoch(epoch)
        ranks.append(list(sampler))
        assert len(ranks[-1]) == len(sampler) == len(batches)
    for step, batch in enumerate(batches):
        shares = [share[step] for share in ranks]
        assert sorted(row for share in shares for row, weight in share if weight) == sorted(batch)
        # Mean over ranks of weight x local mean = mean over the global batch, here with the row's number as its loss.
        means = [share[0][1] * sum(row for row, _ in share) / len(share) for share in shares]
        assert sum(means) / world == pytest.approx(sum(batch) / len(batch))


@given(**SIZES, shuffle=st.booleans())
def test_evaluation_shards_are_uneven_and_never_repeat_a_row(
    rows: int, batch_size: int, world: int, shuffle: bool
) -> None:
    seen = []
    for rank in range(world):
        sampler = PositionSampler(
            rows, batch_size=batch_size, shuffle=shuffle, rank=rank, world_size=world, equal_steps=False
        )
        assert len(list(sampler)) == len(sampler)
        seen += flat(sampler)
    assert sorted(seen) == list(range(rows))


@given(**SIZES)
def test_without_shuffling_batches_are_consecutive(rows: int, batch_size: int, world: int) -> None:
    sampler = PositionSampler(rows, batch_size=batch_size)
    sampler.set_epoch(world)
    assert flat(sampler) == list(range(rows))


def test_the_order_follows_seed_stage_and_epoch_and_nothing_else() -> None:
    def order(seed: int, stage: int, epoch: int, batch_size: int = 4) -> tuple[int, ...]:
        sampler = PositionSampler(50, batch_size=batch_size, seed=seed, stage=stage, shuffle=True)
        sampler.set_epoch(epoch)
        return tuple(flat(sampler))

    places = [(seed, stage, epoch) for seed in range(3) for stage in range(3) for epoch in range(3)]
    assert len({order(*place) for place in places}) == 27
    torch.manual_seed(99)
    assert order(1, 2, 0) == order(1, 2, 0, batch_size=7)


def test_the_order_is_the_same_on_every_machine() -> None:
    sampler = PositionSampler(8, batch_size=8, seed=1, stage=2, shuffle=True)
    sampler.set_epoch(3)
    assert flat(sampler) == GOLDEN


GOLDEN = [6, 0, 1, 7, 3, 2, 5, 4]


@given(rows=st.integers(1, 40), batch_size=st.integers(1, 9), done=st.integers(0, 45))
def test_a_resumed_epoch_goes_on_where_it_stopped(rows: int, batch_size: int, done: int) -> None:
    whole = PositionSampler(rows, batch_size=batch_size, shuffle=True)
    whole.set_epoch(2)
    resumed = PositionSampler(rows, batch_size=batch_size, shuffle=True)
    resumed.set_epoch(2, start_batch=done)
    assert list(resumed) == list(whole)[done:]
    assert len(resumed) == len(whole)
    resumed.set_epoch(2)  # as Lightning does at the start of the epoch
    assert list(resumed) == list(whole)[done:]
    resumed.set_epoch(3)
    whole.set_epoch(3)
    assert list(resumed) == list(whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0, "batch_size": 1}, "there are 0 rows to load"),
        ({"rows": 1, "batch_size": 0}, "batch_size is 0; at least 1"),
        ({"rows": 1, "batch_size": 1, "rank": 2, "world_size": 2}, "rank is 2; with world_size 2 it is 0 to 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PositionSampler(**arguments)


@pytest.fixture
def data(write_split: Any, tokenizer: Any, rows: Any) -> ClassificationData:
    folder = write_split("toy", "train", rows(30))
    source = DataSource(name="toy", splits={"train": "train"}, data_dir=folder)
    made = ClassificationData(name="toy", source=source, columns=["text"], labels=["no", "yes"], max_length=16)
    made.prepare(tokenizer, seed=0)
    return made


def same(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(one, other, strict=True)
    )


def test_a_batch(data: ClassificationData, tokenizer: Any) -> None:
    batch = next(iter(make_loader(data.rows("train"), batch_size=4, shuffle=True)))
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in batch.items()}
    longest = batch["input_ids"].shape[1]
    assert shapes == {
        "input_ids": ((4, longest), torch.int64),
        "attention_mask": ((4, longest), torch.int64),
        "labels": ((4,), torch.int64),
        "row": ((4,), torch.int64),
        "weight": ((), torch.float32),
    }
    for i, row in enumerate(batch["row"].tolist()):
        example = data.examples("train")[row]
        length = int(batch["attention_mask"][i].sum())
        assert tokenizer.decode(batch["input_ids"][i, :length]) == example.texts[0]
        assert batch["labels"][i] == example.label
        assert (batch["input_ids"][i, length:] == tokenizer.pad_token_id).all()
        assert batch["attention_mask"][i].tolist() == [1] * length + [0] * (longest - length)
    assert int(batch["attention_mask"].sum(1).max()) == longest


@pytest.mark.parametrize("epoch", [0, 1])
def test_workers_change_nothing_and_global_chance_is_untouched(data: ClassificationData, epoch: int) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    loaded = []
    for workers in (0, 2):
        loader = make_loader(data.rows("train"), batch_size=4, seed=1, stage=1, shuffle=True, num_workers=workers)
        loader.batch_sampler.set_epoch(epoch)
        loaded.append(list(loader))
    assert same(*loaded)
    assert torch.equal(torch.rand(3), expected)


def test_lightning_finds_set_epoch(data: ClassificationData) -> None:
    from lightning.fabric.utilities.data import _set_sampler_epoch

    loader = make_loader(data.rows("train"), batch_size=4, shuffle=True)
    before = list(loader)
    _set_sampler_epoch(loader, 1)
    assert loader.batch_sampler.epoch == 1
    assert not same(before, list(loader))


def test_evaluation_roles_never_repeat_a_row(data: ClassificationData) -> None:
    seen = [
        row
        for rank in range(4)
        for batch in make_loader(data.rows("test"), batch_size=4, rank=rank, world_size=4)
        for row in batch["row"].tolist()
    ]
    assert sorted(seen) == list(range(data.counts["test"]))


def test_a_role_without_rows(data: ClassificationData) -> None:
    with pytest.raises(ValueError, match="task 'toy' has no rows for 'dev'; it has"):
        make_loader(data.rows("dev"), batch_size=4)
