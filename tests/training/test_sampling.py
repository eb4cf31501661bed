import pytest

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
