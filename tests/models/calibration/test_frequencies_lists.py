"""Files that list examples: split lists, image folders, COCO annotations; and the class counts of real data sets."""

import csv
import io
import json
import os
import tracemalloc
from functools import partial
from pathlib import Path

import pytest

from models.calibration.frequencies import MAX_BYTES, MAX_LIST_BYTES
from tests.models.calibration import frequency_files
from tests.models.calibration.frequency_files import CLASSES

COUNTS = [3, 2, 1]
REAL = Path(os.environ.get("EQUIPOISE_DATA", ".")) / "class_counts"
PATHS = ("cat/1.jpg", "dog/x y.JPEG", "cat/2.png", "snow leopard/1.jpg", "dog/2.webp", "cat/3.jpg")


read = partial(frequency_files.read, role="training")
problems = partial(frequency_files.problems, role="training")


def names(path):
    return path.split("/")[0]


def split_list(separator=" ", label=names, header=None):
    lines = [f"{path}{separator}{label(path)}" for path in PATHS]
    return "\n".join(([] if header is None else [header]) + lines)


def index(path):
    return CLASSES.index(names(path))


class TestSplitLists:
    @pytest.mark.parametrize(
        ("text", "matched_by", "delimiter"),
        [
            (split_list(label=index), "index", " "),
            (split_list(label=index) + "\n\n", "index", " "),
            (split_list(label=index).replace("\n", "\r\n"), "index", " "),
            ("\ufeff" + split_list("\t"), "name", "\t"),
            (split_list(), "name", " "),
            (split_list(","), "name", ","),
            (split_list(", ", label=index), "index", ","),
            (split_list(";"), "name", ";"),
            (split_list(",", header="path,label"), "name", ","),
            (split_list(",", header="File_Name,class_id", label=index), "index", ","),
            (split_list(header="path label"), "name", " "),
            ("\n".join(f'"{path}","{names(path)}"' for path in PATHS), "name", ","),
            ("\n".join(["id,image,index,split", *(f"9,{path},{index(path)},a" for path in PATHS)]), "index", ","),
        ],
    )
    def test_every_way_to_write_the_same_list(self, text, matched_by, delimiter):
        found = read(text)
        assert found.counts.tolist() == COUNTS
        assert (found.format, found.matched_by, found.delimiter) == ("split-list", matched_by, delimiter)

    def test_says_what_was_detected(self):
        assert read(split_list(label=index)).format_detected == (
            "split list of paths and labels, spaces, without header, labels are the classes by index; "
            "3 classes, counts, total 6"
        )

    def test_paths_without_the_ending_of_an_image_are_taken_where_the_format_is_named(self):
        text = "\n".join(f"item {number} {number % 3}" for number in range(6))
        assert read(text, format="split-list").counts.tolist() == [2, 2, 2]

    def test_labels_that_may_be_names_or_indices_are_not_guessed(self):
        (found,) = problems("a.jpg 2\nb.jpg 0", classes=("1", "0", "2"))
        assert found.startswith("line 2: the label '0' may be the name or the index of a class, and these differ.")
        assert "Write `path index` or `path name` as the first line" in found
        assert read("a.jpg 2\nb.jpg 10", classes=("10", "2")).counts.tolist() == [1, 1]

    def test_digit_names_in_the_order_of_the_indices_are_no_riddle(self):
        assert read("a.jpg 0\nb.jpg 1\nc.jpg 1", classes=("0", "1")).counts.tolist() == [1, 2]

    def test_one_label_that_is_the_name_of_another_index_is_enough_to_refuse(self):
        (found,) = problems("a.jpg 0\nb.jpg 2\nc.jpg 1", classes=("1", "0", "x"))
        assert found.startswith("line 1: the label '0' may be the name or the index of a class, and these differ.")

    def test_a_name_of_another_index_is_refused_even_where_other_labels_are_neither(self):
        assert "may be the name or the index" in problems("a.jpg 0\nb.jpg 7", classes=("1", "0"))[0]

    def test_a_header_is_one_even_where_a_class_is_called_like_its_first_cell(self):
        assert read("path,name\na.jpg,path\nb.jpg,dog", classes=("path", "dog")).counts.tolist() == [1, 1]

    def test_names_that_agree_with_their_index_are_no_riddle_beside_other_names(self):
        assert read("a.jpg 0\nb.jpg 1\nc.jpg 1", classes=("0", "x")).counts.tolist() == [1, 2]

    def test_a_few_labels_that_are_no_numbers_do_not_hide_in_a_list_of_indices(self):
        found = problems("a.jpg 0\nb.jpg 1\nc.jpg unknown\nd.jpg 2")
        assert found == ["line 3: class indices are whole numbers from 0 to 2; got 'unknown'."]

    def test_a_few_numbers_in_a_list_of_names_are_unknown_names(self):
        found = problems("a.jpg cat\nb.jpg 1\nc.jpg 0\nd.jpg 2", role="target", missing="zero")
        assert found[0] == (
            "line 2: the model has no class '1'. To match by position, write `path index` as the first line."
        )
        assert "the model has no class 'beast'" in problems("a.jpg beast\nb.jpg 1")[0]

    def test_a_hint_is_written_for_the_list_at_hand(self):
        assert "write `path,index` as the first line" in problems("a.jpg,cat\nb.jpg,1")[0]
        assert "name the column 'index'" in problems("path,name\na.jpg,cat\nb.jpg,1")[0]

    @pytest.mark.parametrize("header", ["id,path,label", "index,path,label"])
    @pytest.mark.parametrize("label", [names, index])
    def test_a_number_of_the_row_beside_a_label_is_no_class(self, header, label):
        lines = [f"{row % 3},{path},{label(path)}" for row, path in enumerate(PATHS)]
        found = read("\n".join([header, *lines]))
        assert found.counts.tolist() == COUNTS
        assert "labels from column 'label'" in found.format_detected

    def test_a_class_id_beside_a_label_settles_that_it_is_an_index(self):
        lines = [f"{path},{names(path)[0]},{index(path)}" for path in PATHS]
        assert read("\n".join(["path,label,class_id", *lines])).counts.tolist() == COUNTS

    def test_spellings_of_the_same_index_are_added_up(self):
        found = read("a.jpg 0\nb.jpg 1\nc.jpg 01\nd.jpg 2\ne.jpg 000000000001")
        assert found.counts.tolist() == [1, 3, 1]
        assert found.warnings == ()

    @pytest.mark.parametrize(("header", "counts"), [("path index", [1, 2]), ("path name", [2, 1])])
    def test_a_header_decides_what_digits_are(self, header, counts):
        assert read(f"{header}\na.jpg 0\nb.jpg 1\nc.jpg 1", classes=("1", "0")).counts.tolist() == counts

    def test_spellings_that_are_the_same_name_are_added_up(self):
        text = "a.jpg caf\u00e9\nb.jpg cafe\u0301\nc.jpg tea"
        assert read(text, classes=("caf\u00e9", "tea")).counts.tolist() == [2, 1]

    def test_every_wrong_label_is_named_with_the_line_where_it_first_stands(self):
        found = problems("a.jpg cat\nb.jpg dgo\nc.jpg dgo\nd.jpg snow leopard\ne.jpg\nf.jpg dog")
        assert found == [
            "line 2: the model has no class 'dgo'. Did you mean 'dog'?",
            "line 5: a line has 2 columns, the path first; got 1.",
        ]

    def test_an_index_out_of_range(self):
        assert problems("a.jpg 0\nb.jpg 1\nc.jpg 2\nd.jpg 3")[0] == (
            "line 4: class indices are whole numbers from 0 to 2; got '3'."
        )

    def test_a_class_without_examples_is_missing(self):
        text = "a.jpg 0\nb.jpg 1"
        assert problems(text, role="target") == [
            "1 of 3 classes are missing: 'snow leopard'. Say missing=zero if it has none."
        ]
        assert read(text, role="target", missing="zero", zeros="smooth").prior.probs[2] == pytest.approx(0.5 / 3.5)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("a.jpg 0\nb.jpg " + "x" * 1001, "at most 1000 characters; got 1,001"),
            ("a.jpg,cat\nb.jpg,", "the label is empty"),
            ("a.jpg 0\n" + "x" * 9000, "line 2: a line of a list has at most 8,192 characters"),
            (b"a.jpg 0\nb.jpg \xff\n", "not UTF-8"),
            ('a.jpg,cat\n"b.jpg,dog\n', "line 2: not readable as CSV"),
            ('p.jpg,0\n"q.jpg,1\nr.jpg,1\ns.jpg",2', "line 2: a cell holds a line break"),
            ("path,label\n", "names no image"),
            ("\n".join(f"a.jpg {number}x" for number in range(2000)), "more than 1,006 different labels"),
        ],
    )
    def test_a_list_that_cannot_be_read(self, text, said):
        assert said in problems(text)[0]


class TestImageFolders:
    @pytest.mark.parametrize(
        "text",
        [
            "\n".join(PATHS),
            "\ufeff" + "\r\n".join(PATHS),
            "\n".join(f"./data/train/{path}" for path in PATHS),
            "\n".join("C:\\data\\" + path.replace("/", "\\") for path in PATHS),
            "path\n" + "\n".join(f'"{path}"' for path in PATHS),
        ],
    )
    def test_the_folder_that_holds_a_file_is_its_class(self, text):
        found = read(text)
        assert found.counts.tolist() == COUNTS
        assert (found.format, found.matched_by) == ("folder-listing", "name")

    def test_folders_called_by_numbers_are_names_and_never_positions(self):
        """Sorted as strings, 10 comes before 2: read as positions, the counts would be exchanged."""
        assert read("10/a.jpg\n10/b.jpg\n2/a.jpg", classes=("2", "10")).counts.tolist() == [1, 2]
        assert "no class '0'" in problems("0/a.jpg\n1/b.jpg\n2/b.jpg")[0]

    def test_other_files_are_left_out_and_counted(self):
        found = read("\n".join([*PATHS, "dog/", "dog/.DS_Store", "labels.txt"]))
        assert found.counts.tolist() == COUNTS
        assert found.warnings == ("lines that name no image file were not counted: 3 (the first is line 7).",)

    def test_an_image_outside_every_folder_is_a_problem(self):
        assert problems("\n".join([*PATHS, "1.jpg", "./2.jpg"])) == [
            "line 7: the path has no folder; the folder that holds a file is its class.",
            "line 8: the path has no folder; the folder that holds a file is its class.",
        ]


def coco(**changes):
    document = {
        "info": {"year": 2017},
        "images": [{"id": 1, "file_name": "1.jpg"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": category, "bbox": [0, 0, 5, 5]}
            for number, category in enumerate([1, 90, 1, 18, 90, 1])
        ],
        "categories": [
            {"id": 18, "name": "snow leopard", "supercategory": "animal"},
            {"id": 1, "name": "cat"},
            {"id": 90, "name": "dog"},
        ],
    }
    return json.dumps(document | changes, indent=1)


class TestCoco:
    def test_annotations_are_counted_by_the_name_of_their_category(self):
        found = read(coco())
        assert found.counts.tolist() == COUNTS
        assert found.format_detected == (
            "COCO annotations, 6 annotations (not images) counted, classes by category name; 3 classes, counts, total 6"
        )

    def test_categories_of_the_same_name_are_added_up(self):
        categories = [{"id": 1, "name": "cat"}, {"id": 90, "name": "dog"}, {"id": 18, "name": "cat"}]
        found = read(coco(categories=categories), classes=("cat", "dog"))
        assert found.counts.tolist() == [4, 2]
        assert found.warnings == ()

    def test_a_category_without_annotations_has_none(self):
        text = coco(annotations=[{"category_id": 1}, {"category_id": 90}])
        assert read(text, role="target", zeros="impossible").values.tolist() == [1, 1, 0]

    def test_everything_wrong_is_said_at_once_with_its_line(self):
        text = coco(
            annotations=[{"category_id": 7}, {"category_id": "1"}, 5],
            categories=[{"id": 1, "name": "cta"}, {"id": 1, "name": "dog"}, {"name": "x"}, {"id": True, "name": "y"}],
        )
        found = problems(text, role="target")
        assert [each.split(": ", 1)[1][:40] for each in found[:7]] == [
            "an annotation has the category id 7, whi",
            "an annotation has a `category_id`, a who",
            "an annotation has a `category_id`, a who",
            "the model has no class 'cta'. Did you me",
            "category id 1 stands twice (first in lin",
            "a category has a whole number `id` and a",
            "a category has a whole number `id` and a",
        ]
        lines = [int(each.split(":")[0].removeprefix("line ")) for each in found[:7]]
        assert lines == sorted(lines)
        assert '"name": "cta"' in "".join(text.split("\n")[lines[3] - 1 : lines[3] + 3])

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ('{"categories": []}', "one of them is not there"),
            ('{"annotations": [], "annotations": []}', "'annotations' stands twice"),
            ('{"annotations": [}', "not readable as JSON"),
            ("[]", "a JSON object with `categories`"),
        ],
    )
    def test_a_document_that_is_not_complete(self, text, said):
        assert said in problems(text, format="coco")[0]

    def test_a_class_may_be_called_images(self):
        assert read('{"images": 5, "annotations": 7}', classes=("images", "annotations")).counts.tolist() == [5, 7]


class Endless(io.RawIOBase):
    """A file of the same lines over and over, which is nowhere in memory."""

    def __init__(self, block, times):
        super().__init__()
        self.block, self.size, self.at = block, len(block) * times, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        self.at = offset + (self.size if whence == io.SEEK_END else 0)
        return self.at

    def readinto(self, buffer):
        start = self.at % len(self.block)
        piece = self.block[start : start + min(len(buffer), self.size - self.at)]
        buffer[: len(piece)] = piece
        self.at += len(piece)
        return len(piece)


class TestLongFiles:
    CLASSES = tuple(f"n{number:08d}" for number in range(1000))

    def test_a_million_lines_are_counted(self):
        block = "".join(f"train/{name}/{name}_{i}.JPEG {i}\n" for i, name in enumerate(self.CLASSES)).encode()
        source = Endless(block, 1000)
        assert read(io.BufferedReader(source), classes=self.CLASSES).counts.tolist() == [1000] * 1000

    def test_memory_follows_the_classes_and_not_the_lines(self):
        """100,000 lines, 33 MB; tracing every allocation of a million would take most of a minute."""
        block = "".join(f"{'x' * 300}/{name}_{i}.JPEG {i}\n" for i, name in enumerate(self.CLASSES)).encode()
        source = Endless(block, 100)
        assert source.size > 30 * MAX_BYTES
        tracemalloc.start()
        found = read(io.BufferedReader(source), classes=self.CLASSES)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.counts.tolist() == [100] * 1000
        assert peak < 2 * MAX_BYTES

    def test_a_line_without_an_end_is_not_read_to_its_end(self):
        tracemalloc.start()
        found = problems(io.BufferedReader(Endless(b"a.jpg 0 " * 512, 10_000)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found == ["line 1: a line of a list has at most 8,192 characters."]
        assert peak < 2 * MAX_BYTES

    def test_a_file_object_is_read_from_its_start_and_left_open(self):
        source = io.BytesIO(split_list().encode())
        source.seek(5)
        assert read(source).counts.tolist() == COUNTS
        assert not source.closed

    @pytest.mark.parametrize(
        ("line", "limit"), [(b"a.jpg 0\n", MAX_LIST_BYTES), (b"cat/1.jpg\n", MAX_LIST_BYTES), (b"cat,1\n", MAX_BYTES)]
    )
    def test_a_file_over_the_limit_of_its_format_is_refused_before_it_is_read(self, line, limit):
        source = Endless(line, limit // len(line) + 1)
        assert f"at most {limit:,} bytes; got {source.size:,}" in problems(io.BufferedReader(source))[0]
        assert source.at < MAX_BYTES


@pytest.mark.skipif(not REAL.is_dir(), reason="EQUIPOISE_DATA names no folder with class_counts")
class TestRealDataSets:
    @pytest.mark.parametrize(
        ("file", "total", "matched_by"),
        [
            ("imagenet_lt_train.csv", 115_846, "index"),
            ("places_lt_train.csv", 62_500, "name"),
            ("cifar100_lt_ir100.csv", 10_847, "index"),
            ("lvis_v1_train_image_count.csv", 360_952, "index"),
        ],
    )
    def test_published_counts_are_read_as_they_are(self, file, total, matched_by):
        with (REAL / file).open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        classes = [row.get("name") or row.get("wnid") or row["class_id"] for row in rows]
        found = read((REAL / file).read_bytes(), classes=classes)
        assert (found.counts.sum(), found.matched_by) == (total, matched_by)
        assert found.counts.tolist() == [int(row["count"]) for row in rows]

    def test_the_official_form_of_imagenet_lt_gives_the_published_counts(self):
        with (REAL / "imagenet_lt_train.csv").open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        wnids, counts = [row["wnid"] for row in rows], [int(row["count"]) for row in rows]
        images = [(f"train/{wnid}/{wnid}_{k}.JPEG", i) for i, wnid in enumerate(wnids) for k in range(counts[i])]
        by_index = read("\n".join(f"{path} {label}" for path, label in images), classes=wnids)
        by_folder = read("\n".join(path for path, _ in images), classes=wnids)
        assert by_index.counts.tolist() == by_folder.counts.tolist() == counts
