"""Networks in memory: each loaded once, the least used put out, and none taken from whoever uses it."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from models.calibration.manifest import InputSize
from service.errors import InvalidBundle, ModelNotLoaded, StorageUnavailable
from service.runtime.networks import Networks, StoredNetwork
from tests.service.bundles import COUNTS, HEIGHT, WIDTH, linear_graph

SIZE = InputSize(height=HEIGHT, width=WIDTH)
IMAGES = np.zeros((2, HEIGHT, WIDTH, 3), dtype=np.uint8)
CLASSES = len(COUNTS)


class Shelf:
    """Where graphs are read from; counts how often each was, and can be made to wait or to fail."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        shape = (HEIGHT * WIDTH * 3, CLASSES)
        self.graphs = {
            name: linear_graph(rng.normal(size=shape).astype(np.float32), np.log(COUNTS)).SerializeToString()
            for name in "abcd"
        }
        self.size = len(self.graphs["a"])
        self.reads: Counter[str] = Counter()
        self.open = threading.Event()
        self.open.set()
        self.failing = False

    def read(self, digest: str) -> bytes:
        self.reads[digest] += 1
        self.open.wait(timeout=30)
        if self.failing:
            raise StorageUnavailable("the store is gone.")
        return self.graphs[digest]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def networks(shelf: Shelf, *, room_for: float) -> Networks:
    return Networks(shelf.read, limit_bytes=int(room_for * shelf.size))


def stored(kept: Networks, name: str) -> StoredNetwork:
    return StoredNetwork(kept, name, model="pets", num_classes=CLASSES, size=SIZE)


def test_a_network_is_loaded_once_however_many_ask_for_it_at_once(shelf: Shelf) -> None:
    kept = networks(shelf, room_for=9)
    shelf.open.clear()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(kept.get, "ab"[number % 2], CLASSES, SIZE) for number in range(8)]
        shelf.open.set()
        runners = {id(each.result()) for each in asked}
    assert len(runners) == 2
    assert shelf.reads == {"a": 1, "b": 1}


def test_one_network_does_not_wait_while_another_is_loaded(shelf: Shelf) -> None:
    kept = networks(shelf, room_for=9)
    kept.get("a", CLASSES, SIZE)
    shelf.open.clear()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(kept.get, "b", CLASSES, SIZE)
        while not shelf.reads["b"]:
            time.sleep(0.001)
        assert kept.get("a", CLASSES, SIZE).run(IMAGES).shape == (2, CLASSES)
        assert not loading.done()
        shelf.open.set()


def test_the_least_recently_used_goes_first_and_is_loaded_again_when_it_is_asked_for(shelf: Shelf) -> None:
    kept = networks(shelf, room_for=2)
    for name in "abac":
        kept.get(name, CLASSES, SIZE)
    assert kept.digests() == ["a", "c"]
    kept.get("b", CLASSES, SIZE)
    assert kept.digests() == ["c", "b"]
    assert shelf.reads["b"] == 2


def test_one_that_is_larger_than_the_bound_is_kept_alone(shelf: Shelf) -> None:
    kept = networks(shelf, room_for=0.5)
    kept.get("a", CLASSES, SIZE)
    kept.get("b", CLASSES, SIZE)
    assert kept.digests() == ["b"]


def test_one_in_use_goes_on_working_after_it_was_put_out(shelf: Shelf) -> None:
    kept = networks(shelf, room_for=1)
    used = kept.get("a", CLASSES, SIZE)
    before = used.run(IMAGES)
    kept.get("b", CLASSES, SIZE)
    assert kept.digests() == ["b"]
    np.testing.assert_array_equal(used.run(IMAGES), before)


def test_there_is_room_as_long_as_nothing_would_be_put_out(shelf: Shelf) -> None:
    kept = networks(shelf, room_for=2.5)
    room = []
    for name in "abc":
        room.append(kept.has_room())
        kept.get(name, CLASSES, SIZE)
    assert room == [True, True, False]


def test_a_load_that_failed_is_tried_again_by_the_next_who_asks(shelf: Shelf) -> None:
    kept = networks(shelf, room_for=2)
    shelf.failing = True
    network = stored(kept, "a")
    with pytest.raises(StorageUnavailable):
        network.load()
    with pytest.raises(ModelNotLoaded, match="model 'pets' is registered but cannot be loaded: the store is gone"):
        network.run(IMAGES)
    assert not network.is_loaded()
    shelf.failing = False
    assert network.run(IMAGES).shape == (2, CLASSES)
    assert network.is_loaded()


def test_a_graph_that_does_not_fit_is_refused_and_takes_no_room(shelf: Shelf) -> None:
    kept = networks(shelf, room_for=2)
    shelf.graphs["a"] = b"not a graph"
    with pytest.raises(InvalidBundle):
        kept.get("a", CLASSES, SIZE)
    assert kept.digests() == []


def test_a_loaded_graph_is_refused_to_a_model_with_another_number_of_classes(shelf: Shelf) -> None:
    kept = networks(shelf, room_for=9)
    kept.get("a", CLASSES, SIZE)
    with pytest.raises(InvalidBundle, match=rf"\(N, {CLASSES - 1}\)"):
        kept.get("a", CLASSES - 1, SIZE)
    assert kept.digests() == ["a"]
