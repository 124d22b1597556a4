"""What holds for every class-frequency file: written counts come back, order is nothing, no bytes break the reader."""

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration.errors import FrequencyFileError
from models.calibration.frequencies import FORMATS, read_frequencies

QUICK = settings(deadline=None, max_examples=50)
CLASSES = ("cat", "dog", "snow leopard", "caf\u00e9", "10", "2")


def written_as(kind, counts):
    """The same counts as every format has them; examples are listed in turns, as a shuffled list would."""
    items = list(counts.items())
    if kind.startswith("table"):
        out = io.StringIO()
        writer = csv.writer(out, delimiter={"comma": ",", "semicolon": ";", "tab": "\t"}[kind.split()[1]])
        writer.writerows([("class", "count"), *items])
        return out.getvalue()
    if kind == "object":
        return json.dumps(counts)
    if kind == "list":
        return json.dumps(list(counts.values()))
    if kind == "records":
        return json.dumps([{"class": name, "count": count} for name, count in items], ensure_ascii=False, indent=1)
    if kind == "numbers":
        return "\n".join(str(count) for count in counts.values())
    examples = sorted((turn, name) for name, count in items for turn in range(count))
    if kind == "split list":
        return "\n".join(["path name", *(f"some/{turn}.jpg {name}" for turn, name in examples)])
    if kind == "csv split list":
        out = io.StringIO()
        csv.writer(out).writerows([("path", "class"), *((f"{turn}, a.jpg", name) for turn, name in examples)])
        return out.getvalue()
    if kind == "folders":
        return "\n".join(f"train/{name}/{turn}.png" for turn, name in examples)
    ids = {name: 3 + 7 * position for position, name in enumerate(sorted(counts))}
    return json.dumps(
        {
            "images": [],
            "annotations": [{"id": turn, "category_id": ids[name]} for turn, name in examples],
            "categories": [{"name": name, "id": number} for name, number in ids.items()],
        }
    )


KINDS = (
    "table comma",
    "table semicolon",
    "table tab",
    "object",
    "list",
    "records",
    "numbers",
    "split list",
    "csv split list",
    "folders",
    "coco",
)

# Names as people have them: anything but control characters, and no white space around
names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12).map(lambda name: f"a {name}")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@QUICK
def test_counts_come_back_from_every_format(kind, data):
    listed = data.draw(st.lists(names, min_size=2, max_size=6, unique_by=lambda name: name.casefold()))
    classes = tuple(name.replace("/", "_").replace("\\", "_").strip('"') + "x" for name in listed)
    if len(set(classes)) < len(classes):
        return
    few = kind in ("split list", "csv split list", "folders", "coco")
    counts = {name: data.draw(st.integers(2, 9 if few else 2**53 - 1)) for name in classes}
    found = read_frequencies(written_as(kind, counts).encode(), classes, role="training")
    assert found.counts.tolist() == list(counts.values())


@given(st.lists(st.floats(1e-300, 1e15), min_size=2, max_size=40))
@QUICK
def test_numbers_come_back_to_the_last_bit(values):
    classes = [f"class {position}" for position in range(len(values))]
    text = "\n".join(f"{name},{value!r}" for name, value in zip(classes, values, strict=True))
    assert read_frequencies(text.encode(), classes, role="target").values.tolist() == values
    assert read_frequencies(json.dumps(values).encode(), classes, role="target").values.tolist() == values


def outcome(data, **options):
    """Values, or what was refused, without the lines."""
    try:
        return read_frequencies(data, CLASSES, **options).values.tolist()
    except FrequencyFileError as error:
        problems = error.problems
    assert 1 <= len(problems) <= 110
    assert all(each.message and (each.line is None or each.line >= 1) for each in problems)
    return sorted(each.message for each in problems)


LINES = st.permutations(
    ["cat,5", "dgo,3", "snow leopard,-1", "caf\u00e9,ten", "10,1.5", "10,2,7", "Cat,0", "elephant,1", "dog,", "2,1e400"]
)


@given(LINES, st.sampled_from(["target", "training"]))
@QUICK
def test_the_order_of_faults_does_not_matter(lines, role):
    def refused(given):
        return outcome("\n".join(["class,count", *given]).encode(), role=role)

    assert refused(lines) == refused(sorted(lines))


@given(st.permutations([*CLASSES]), st.sampled_from(["table comma", "object", "records", "folders", "coco"]))
@QUICK
def test_the_order_of_classes_in_the_file_does_not_matter_where_names_do(order, kind):
    counts = {name: 3 + CLASSES.index(name) for name in order}
    assert outcome(written_as(kind, counts).encode(), role="training") == [3, 4, 5, 6, 7, 8]


anything = {"role": st.sampled_from(["target", "training"]), "missing": st.sampled_from(["error", "zero"])}
anything["zeros"] = st.sampled_from(["error", "impossible", "smooth"])
anything["format"] = st.sampled_from([None, *FORMATS])


@given(st.binary(max_size=300), st.fixed_dictionaries(anything))
@settings(deadline=None, max_examples=200)
def test_no_bytes_raise_anything_but_the_error_of_this_reader(data, options):
    outcome(data, **options)


@given(st.sampled_from(KINDS), st.data(), st.fixed_dictionaries(anything))
@settings(deadline=None, max_examples=200)
def test_no_damage_to_a_good_file_raises_anything_but_the_error_of_this_reader(kind, data, options):
    good = bytearray(written_as(kind, dict(zip(CLASSES, range(2, 8), strict=True))).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good)))
        until = data.draw(st.integers(at, min(len(good), at + 20)))
        good[at:until] = data.draw(st.binary(max_size=5) | st.sampled_from([b'"', b"{", b"]", b",", b"\n", b"\\ud800"]))
    outcome(bytes(good), **options)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * (1 << 20),
        b'{"a":' * 200_000,
        b'"' * (1 << 20),
        b"9" * (1 << 20),
        b"1e" + b"9" * 1_000_000,
        b'{"cat": ' + b"9" * 1_000_000 + b"}",
        b'{"cat": 0.' + b"9" * 1_000_000 + b"}",
        b'{"' + b"c" * 1_000_000 + b'": 1}',
        b"," * (1 << 20),
        b"a.jpg" * 200_000,
        b"a.jpg cat" + b" " * (1 << 20) + b"x",
        b".jpg " * 1600 + b"\n" + b"cat.jpg " * 1000,
        (b"a.jpg,cat\n" + b'"') * 10,
        b'{"annotations": [' + b"[]," * 300_000 + b"0]}",
        b'{"categories": [{"id": 1, "name": "cat"}], "annotations": ['
        + b",".join(b'{"category_id": %d}' % number for number in range(50_000))
        + b"]}",
        b"\n".join(b"beast%d,1" % number for number in range(60_000)),
        b"\n" * ((1 << 20) - 1) + b"x",
    ],
)
def test_files_made_to_take_long_do_not(data):
    """Nothing is timed here: the reader that searched, nested or added up without a limit would not return."""
    assert outcome(data, role="target")


def test_values_of_a_real_size_make_the_prior():
    counts = np.maximum((1000 * 500 ** (-np.arange(8142) / 8141)).astype(int), 2)
    classes = [f"{position:05d}_Animalia_Chordata_species_{position}" for position in range(8142)]
    text = "\n".join(f"{name},{count}" for name, count in zip(classes, counts, strict=True))
    found = read_frequencies(text.encode(), classes, role="training")
    np.testing.assert_allclose(found.prior.probs, counts / counts.sum())
