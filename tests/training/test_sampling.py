from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from cgnl.data.lists import Sample, SampleList
from cgnl.data.records import FileDataset
from cgnl.training.sampling import EpochBatches


def batches(**options):
    settings = {"length": 23, "batch_size": 4, "training": True, "seed": 3} | options
    return EpochBatches(settings.pop("length"), settings.pop("batch_size"), **settings)


def test_an_epoch_shows_each_sample_at_most_once_and_epochs_differ():
    sampler = batches()
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        keys = [key for batch in sampler for key in batch]
        assert {e for e, _ in keys} == {epoch}
        indices = [index for _, index in keys]
        assert len(indices) == len(set(indices)) == 20
        epochs.append(indices)
    assert epochs[0] != epochs[1]


def test_resuming_gives_the_rest_of_the_epoch_and_whole_epochs_after_it():
    whole = batches()
    whole.set_epoch(5)
    expected = list(whole)
    resumed = batches()
    resumed.resume(5, 3)
    assert len(resumed) == len(expected) == 5
    assert list(resumed) == expected[3:]
    assert list(resumed) == expected[3:], "the loader may make its iterator anew before the first batch"
    for sampler in (whole, resumed):
        sampler.set_epoch(6)
    assert list(resumed) == list(whole)


@pytest.mark.parametrize("length", [1, 2, 7, 24, 25])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_test_every_sample_exactly_once(length, world_size):
    shares = [
        [i for b in batches(length=length, training=False, rank=rank, world_size=world_size) for _, i in b]
        for rank in range(world_size)
    ]
    assert sorted(index for share in shares for index in share) == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_processes_together_train_on_the_batches_of_one():
    alone = list(batches(batch_size=4))
    pair = [list(batches(batch_size=2, rank=rank, world_size=2)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*pair, strict=True)] == [sorted(batch) for batch in alone]


def test_an_epoch_has_whole_steps_of_accumulated_parts():
    sampler = batches(length=23, batch_size=2, parts=4)
    assert len(sampler) == 8
    assert len(list(sampler)) == 8


def test_too_few_samples_for_a_step_are_refused():
    with pytest.raises(ValueError, match=r"7 samples.*data.batch_size 8"):
        batches(length=7, batch_size=4, world_size=2)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_of_a_process_are_of_one_group_each_and_as_many_as_without_groups(world_size, parts):
    wide = [index % 3 > 0 for index in range(45)]
    options = {"length": 45, "world_size": world_size, "parts": parts}
    epochs = []
    for epoch in range(4):
        shares, plain = [], []
        for rank in range(world_size):
            for given, groups in ((shares, wide), (plain, None)):
                sampler = batches(**options, rank=rank, groups=groups)
                sampler.set_epoch(epoch)
                given.append([[index for _, index in batch] for batch in sampler])
                assert len(given[-1]) == len(sampler)
        assert [list(map(len, share)) for share in shares] == [list(map(len, share)) for share in plain]
        seen = [index for share in shares for batch in share for index in batch]
        assert len(seen) == len(set(seen)) == 4 * parts * world_size * (45 // (4 * parts * world_size))
        mixed = [batch for share in shares for batch in share if len({wide[index] for index in batch}) > 1]
        # 15 of one group and 30 of the other leave 3 and 2
        assert len(mixed) <= 1
        epochs.append(seen)
    assert len({tuple(seen) for seen in epochs}) == 4
    assert any({*range(45)} - {*first} != {*range(45)} - {*epochs[0]} for first in epochs[1:]), "others are left out"


def test_resuming_with_groups_gives_the_rest_of_the_epoch():
    for rank in range(2):
        options = {"length": 45, "world_size": 2, "rank": rank, "groups": [index % 3 > 0 for index in range(45)]}
        whole, resumed = batches(**options), batches(**options)
        whole.set_epoch(3)
        resumed.resume(3, 2)
        assert list(resumed) == list(whole)[2:]


def test_testing_keeps_the_order_whatever_the_groups():
    keys = batches(length=7, training=False, groups=[index % 2 > 0 for index in range(7)])
    assert [index for batch in keys for _, index in batch] == list(range(7))


LABELS = [0] * 60 + [3] * 25 + [1] * 15


def drawn(epoch, **options):
    sampler = batches(length=100, labels=LABELS, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_a_balanced_epoch_is_as_long_and_draws_each_class_equally_often():
    epochs = [[key for batch in drawn(epoch) for key in batch] for epoch in range(60)]
    assert {len(keys) for keys in epochs} == {100}
    counts = Counter(LABELS[key[1]] for keys in epochs for key in keys)
    # classes without samples, as 2, are never drawn; five standard deviations of 6000 draws
    assert counts.keys() == {0, 1, 3}
    assert all(abs(count - 2000) < 5 * (6000 * 2 / 9) ** 0.5 for count in counts.values())
    indices = Counter(key[1] for keys in epochs for key in keys)
    # within a class each sample is equally likely
    for label, own in ((0, range(60)), (3, range(60, 85)), (1, range(85, 100))):
        expected = counts[label] / len(own)
        assert chisquare([indices[index] for index in own]).pvalue > 1e-4, expected
    assert epochs[0] != epochs[1]


def test_a_sample_that_comes_again_is_cut_anew():
    keys = [key for batch in drawn(2) for key in batch]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {2, 3}
    assert {key[:2] for key in keys if len(key) == 3} <= {key for key in keys if len(key) == 2}
    (dataset,) = [Drawing(SampleList(Path(), tuple(Sample(Path(str(k)), 0) for k in range(100)), ("a",), "list"))]
    again = next(key for key in keys if len(key) == 3)
    assert len({dataset[key]["image"] for key in ((*again[:2],), again, (again[0] + 1, *again[1:]))}) == 3
    assert dataset[again] == dataset[again]


class Drawing(FileDataset):
    def read(self, index):
        return {"image": float(torch.rand(()))}


@pytest.mark.parametrize("parts", [1, 2])
def test_balanced_draws_of_processes_and_resumed_epochs_are_those_of_one(parts):
    alone = drawn(4, batch_size=8)
    pair = [drawn(4, batch_size=4 // parts, rank=rank, world_size=2, parts=parts) for rank in range(2)]
    together = [a + b for a, b in zip(*pair, strict=True)]
    steps = [[*chain(*together[start : start + parts])] for start in range(0, len(together), parts)]
    assert [sorted(step) for step in steps] == [sorted(batch) for batch in alone]
    for rank in range(2):
        resumed = batches(length=100, labels=LABELS, batch_size=4 // parts, rank=rank, world_size=2, parts=parts)
        resumed.resume(4, 7)
        assert list(resumed) == pair[rank][7:]
