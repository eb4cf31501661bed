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
