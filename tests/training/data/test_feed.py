import numpy as np
import pytest
import torch

from models.images import decode_image
from training.data import InvalidData, load
from training.data.feed import FileFeed, evaluation_batches

ROWS = (torch.tensor([3, 0, 5]), torch.tensor([1, 2]))


@pytest.fixture
def files(tmp_path, write_image):
    """Seven training images of 100 x 80 pixels, for a network that takes 72 x 66."""
    lists = {}
    for name, count in (("train", 7), ("test", 2), ("cal", 2)):
        lines = [f"{write_image(f'{name}/{n}.jpg', (100, 80))} {n % 2}" for n in range(count)]
        lists[name] = tmp_path / f"{name}.txt"
        lists[name].write_text("\n".join(lines))
    data = load(str(lists["train"]), test_list=lists["test"], calibration_list=lists["cal"], image_size=(66, 72))
    return data.train


def epoch(feed, rows=ROWS, seed=1, first_step=0, views=1):
    return list(feed.epoch(iter(rows), seed=seed, first_step=first_step, views=views))


def test_batches_are_bytes_of_the_stated_shape(files):
    batches = epoch(FileFeed(files), views=2)
    assert [batch.shape for batch in batches] == [(2, 3, 66, 72, 3), (2, 2, 66, 72, 3)]
    assert {batch.dtype for batch in batches} == {torch.uint8}


@pytest.mark.parametrize("jitter", [False, True])
def test_worker_processes_change_nothing(files, jitter):
    alone = epoch(FileFeed(files, jitter=jitter), views=2)
    shared = epoch(FileFeed(files, jitter=jitter, workers=2), views=2)
    for one, other in zip(alone, shared, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_start_in_the_middle_changes_nothing(files):
    whole = epoch(FileFeed(files), first_step=4)
    torch.testing.assert_close(epoch(FileFeed(files), rows=ROWS[1:], first_step=5)[0], whole[1], rtol=0, atol=0)


@pytest.mark.parametrize("change", [{"seed": 2}, {"first_step": 1}])
def test_seed_and_step_decide_what_is_drawn(files, change):
    assert not torch.equal(epoch(FileFeed(files))[0], epoch(FileFeed(files), **change)[0])


def test_views_and_places_have_draws_of_their_own(files):
    batch = epoch(FileFeed(files), rows=[torch.tensor([4, 4])], views=2)[0]
    crops = {batch[view, place].numpy().tobytes() for view in range(2) for place in range(2)}
    assert len(crops) == 4


def test_a_place_does_not_depend_on_the_rest_of_the_batch(files):
    pair = epoch(FileFeed(files), rows=[torch.tensor([4, 6])], views=2)[0]
    alone = epoch(FileFeed(files), rows=[torch.tensor([4])])[0]
    torch.testing.assert_close(alone[0, 0], pair[0, 0], rtol=0, atol=0)


def test_without_workers_rows_are_asked_for_one_by_one(files):
    asked = []

    def rows():
        for chosen in ROWS:
            asked.append(len(asked))
            yield chosen

    batches = FileFeed(files).epoch(rows(), seed=0, first_step=0)
    assert asked == []
    next(batches)
    assert asked == [0]
    next(batches)
    assert asked == [0, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_generator_of_the_training_is_left_alone(files, workers):
    before = torch.get_rng_state()
    epoch(FileFeed(files, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_flips_and_jitter_are_options(files):
    plain, flipped, jittered = (
        torch.cat([batch[0] for batch in epoch(FileFeed(files, flip=flip, jitter=jitter), rows=[torch.arange(7)] * 4)])
        for flip, jitter in ((False, False), (True, False), (False, True))
    )
    kept = [torch.equal(one, other) for one, other in zip(plain, flipped, strict=True)]
    mirrored = [torch.equal(one, other.flip(1)) for one, other in zip(plain, flipped, strict=True)]
    assert all(same or mirror for same, mirror in zip(kept, mirrored, strict=True))
    assert 0 < sum(mirrored) < 28
    assert not any(torch.equal(one, other) for one, other in zip(plain, jittered, strict=True))


def test_crops_are_parts_of_the_image_they_belong_to(files, tmp_path):
    """A crop's mean colour lies within the range of its image's."""
    batch = epoch(FileFeed(files), rows=[torch.tensor([6])])[0][0, 0].numpy()
    image = decode_image((tmp_path / "train/6.jpg").read_bytes(), height=80, width=100)
    assert (batch.mean(axis=(0, 1)) >= image.min(axis=(0, 1))).all()
    assert (batch.mean(axis=(0, 1)) <= image.max(axis=(0, 1))).all()


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_evaluation_sees_all_images_in_order_as_serving_does(files, tmp_path, batch_size):
    batches = list(evaluation_batches(files, batch_size))
    assert max(map(len, batches)) == min(batch_size, 7)
    expected = [decode_image((tmp_path / path).read_bytes(), height=66, width=72) for path in files.paths]
    np.testing.assert_array_equal(torch.cat(batches).numpy(), np.stack(expected))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [None, b"no image"])
def test_a_file_that_changed_is_named(files, tmp_path, workers, content):
    (tmp_path / "train/5.jpg").unlink()
    if content is not None:
        (tmp_path / "train/5.jpg").write_bytes(content)
    with pytest.raises(InvalidData, match=r"train/5\.jpg was an image"):
        epoch(FileFeed(files, workers=workers))
    with pytest.raises(InvalidData, match=r"train/5\.jpg was an image"):
        list(evaluation_batches(files, 4))


def test_a_negative_number_of_workers_is_refused(files):
    with pytest.raises(InvalidData, match="0 for none; got -1"):
        FileFeed(files, workers=-1)
