"""Batches of images that stay in files: with random crops for training, as serving sees them for evaluation."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from models.calibration.errors import ImageTooLarge, InvalidImage
from models.images import decode_image, decode_rgb
from training.data.errors import InvalidData
from training.data.splits import ImageFiles

JITTER = 0.4  # of brightness, contrast and saturation, in the ImageNet-LT and Places-LT recipes of the field
PREFETCH = 2  # batches that each worker keeps ready

Task = tuple[int, list[int]]  # a step and the rows of its images


class FileFeed:
    """A `training.feed.Feed` of image files: a random part of each image scaled to the input (`RandomResizedCrop`: 8 to
    100 % of the area, sides 3:4 to 4:3), half of them mirrored.

    What is drawn for an image depends on seed, step, view and its place in the batch alone, so worker processes and a
    start in the middle change nothing. With workers the rows are asked for ahead of time, up to two batches a worker;
    without them each is asked for when its batch is. Workers hand batches over in shared memory: a container needs
    2 * workers * views * batch size * height * width * 3 bytes of it.

    Args: flip, mirror half of the images. jitter, change brightness, contrast and saturation by up to 40 %. workers,
        processes that decode; 0 decodes in this one.
    """

    def __init__(self, files: ImageFiles, *, flip: bool = True, jitter: bool = False, workers: int = 0) -> None:
        if workers < 0:
            raise InvalidData(f"workers is a number of processes, 0 for none; got {workers}.")
        self.files = files
        self.workers = workers
        steps: list[Any] = [v2.RandomResizedCrop(files.image_size, antialias=True)]
        if flip:
            steps.append(v2.RandomHorizontalFlip())
        if jitter:
            steps.append(v2.ColorJitter(JITTER, JITTER, JITTER, 0))
        self.transform = v2.Compose(steps)

    def epoch(self, rows: Iterable[Tensor], *, seed: int, first_step: int, views: int = 1) -> Iterator[Tensor]:
        """uint8 `(views, N, H, W, 3)` on the CPU for each tensor of image indices `(N,)`.

        Raises: InvalidData for a file that changed since the data were loaded.
        """
        batches = _Batches(self.files, self.transform, seed, views)
        tasks = ((step, chosen.tolist()) for step, chosen in enumerate(rows, first_step))
        for batch in self._in_workers(batches, tasks) if self.workers else map(batches.__getitem__, tasks):
            if isinstance(batch, InvalidData):
                raise batch
            yield batch

    def _in_workers(self, batches: "_Batches", tasks: Iterator[Task]) -> Iterable[Tensor | InvalidData]:
        return DataLoader(
            batches,
            batch_size=None,  # a task is a whole batch
            sampler=_Once(tasks),
            num_workers=self.workers,
            prefetch_factor=PREFETCH,
            generator=torch.Generator(),  # else the loader draws from the generator of the training
        )


def evaluation_batches(files: ImageFiles, batch_size: int) -> Iterator[Tensor]:
    """uint8 `(N, H, W, 3)` on the CPU, all images in order, decoded by the rule of serving."""
    height, width = files.image_size

    def decoded(row: int) -> np.ndarray:
        return _of_file(files, row, lambda data: decode_image(data, height=height, width=width))

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), batch_size):
            rows = range(start, min(start + batch_size, len(files)))
            yield torch.from_numpy(np.stack(list(pool.map(decoded, rows))))


class _Batches(Dataset[Tensor | InvalidData]):
    """Each batch by its task; what a worker process holds."""

    def __init__(self, files: ImageFiles, transform: v2.Transform, seed: int, views: int) -> None:
        self.files, self.transform, self.seed, self.views = files, transform, seed, views

    def __getitem__(self, task: Task) -> Tensor | InvalidData:
        """The error is returned, for the process that asked to raise: a loader whose worker raises hides the message
        in a traceback and takes seconds to stop."""
        try:
            return self._batch(*task)
        except InvalidData as error:
            return error

    def _batch(self, step: int, rows: list[int]) -> Tensor:
        batch = np.empty((self.views, len(rows), *self.files.image_size, 3), dtype=np.uint8)
        with torch.random.fork_rng(devices=[]):  # the transforms draw from torch's global generator
            for place, row in enumerate(rows):
                image = _of_file(self.files, row, decode_rgb)
                for view in range(self.views):
                    torch.default_generator.manual_seed(_mixed(self.seed, step, view, place))
                    batch[view, place] = np.asarray(self.transform(image))
        return torch.from_numpy(batch)


class _Once:
    """Tasks as a sampler: an iterable without a length."""

    def __init__(self, tasks: Iterator[Task]) -> None:
        self.tasks = tasks

    def __iter__(self) -> Iterator[Task]:
        return self.tasks


def _mixed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def _of_file(files: ImageFiles, row: int, decode: Any) -> Any:
    path = files.root / files.paths[row]
    try:
        return decode(path.read_bytes())
    except (OSError, InvalidImage, ImageTooLarge) as error:
        raise InvalidData(
            f"{files.paths[row]} was an image when the data were loaded and cannot be read now: {error} Restore it, or "
            "load the data again."
        ) from error
