import json

import numpy as np
import pytest

from models.calibration.errors import FrequencyFileError
from models.calibration.frequencies import MAX_BYTES, read_frequencies

CLASSES = ("cat", "dog", "snow leopard")
COUNTS = [60, 30, 10]
CSV = "class,count\ncat,60\ndog,30\nsnow leopard,10\n"


def read(text, role="target", zeros="error", classes=CLASSES):
    data = text if isinstance(text, bytes) else text.encode()
    return read_frequencies(data, classes, role=role, zeros=zeros)


def problems(text, **options):
    with pytest.raises(FrequencyFileError) as error:
        read(text, **options)
    return [str(problem) for problem in error.value.problems]


class TestWhatIsRead:
    @pytest.mark.parametrize(
        "text",
        [
            CSV,
            CSV.replace(",", "\t"),
            CSV.replace(",", ";"),
            CSV.replace("\n", "\r\n"),
            CSV.replace("\n", "\r"),
            "\ufeff" + CSV,
            CSV.split("\n", 1)[1],
            "Name,wnid,Frequency\ndog,n2,30\n cat ,n1,60\n\nsnow leopard,n3,10",
            'class,count\n"cat",60\n"dog",30\n"snow leopard",10',
            "index,count\n2,10\n0,60\n1,30\n",
            "class_id,count,name\n7,60,cat\n8,30,dog\n9,10,snow leopard\n",
            json.dumps(dict(zip(CLASSES, COUNTS, strict=True))),
            json.dumps(COUNTS),
            json.dumps([{"class": name, "count": n} for name, n in zip(CLASSES, COUNTS, strict=True)]),
        ],
    )
    @pytest.mark.parametrize("role", ["target", "training"])
    def test_every_way_to_write_the_same_counts(self, text, role):
        frequencies = read(text, role)
        assert frequencies.counts.tolist() == COUNTS
        assert frequencies.kind == "counts"
        np.testing.assert_allclose(frequencies.prior.probs, [0.6, 0.3, 0.1])

    def test_the_order_of_lines_does_not_matter_because_names_do(self):
        assert read("dog,30\nsnow leopard,10\ncat,60").counts.tolist() == COUNTS

    def test_digit_names_are_names_and_not_positions(self):
        assert read("class,count\n1,5\n0,7", classes=("1", "0")).counts.tolist() == [5, 7]

    def test_says_what_was_detected(self):
        assert read(CSV).format_detected == "CSV, classes by name from column 'class', values from column 'count'"
        assert read(json.dumps(COUNTS)).format_detected == "JSON list in class order"

    def test_names_match_after_unicode_normalisation(self):
        composed, decomposed = "caf\u00e9", "cafe\u0301"
        assert read(f"{decomposed},1\ntea,2", classes=(composed, "tea")).counts.tolist() == [1, 2]

    @pytest.mark.parametrize(
        ("values", "kind", "warning"),
        [
            ([0.6, 0.3, 0.1], "fractions", None),
            ([60.5, 29.5, 10], "percentages", "percentages"),
            ([6.5, 3, 1], "weights", "normalised"),
        ],
    )
    def test_a_target_may_be_fractions_or_percentages(self, values, kind, warning):
        frequencies = read(json.dumps(values))
        assert frequencies.kind == kind
        assert [warning in text for text in frequencies.warnings] == ([True] if warning else [])
        np.testing.assert_allclose(frequencies.prior.probs, np.array(values) / sum(values))

    def test_a_line_that_stands_twice_alike_is_a_warning(self):
        assert "twice" in read(CSV + "cat,60").warnings[0]


class TestZeros:
    ZERO = "cat,60\ndog,0\nsnow leopard,10"

    def test_are_an_error_unless_the_caller_says_what_they_mean(self):
        assert "zeros=impossible" in problems(self.ZERO)[0]

    def test_impossible_classes_get_probability_zero(self):
        assert read(self.ZERO, zeros="impossible").prior.probs[1] == 0

    def test_smoothing_adds_half_an_example(self):
        np.testing.assert_allclose(read(self.ZERO, zeros="smooth").prior.probs, np.array([60.5, 0.5, 10.5]) / 71.5)

    def test_smoothing_needs_counts(self):
        assert "needs counts" in problems("cat,0.6\ndog,0\nsnow leopard,0.4", zeros="smooth")[0]

    @pytest.mark.parametrize("zeros", ["error", "impossible", "smooth"])
    def test_a_training_class_is_never_empty(self, zeros):
        assert "at least one training example; 0 for 'dog'" in problems(self.ZERO, role="training", zeros=zeros)[0]

    def test_all_zero_is_refused(self):
        assert problems("cat,0\ndog,0\nsnow leopard,0", zeros="impossible") == [
            "all values are 0. At least one class must occur."
        ]


class TestWhatIsRefused:
    def test_everything_wrong_is_said_at_once_with_its_line(self):
        found = problems("class,count\ncat,-1\ndgo,30\nsnow leopard,ten\nsnow leopard,\ncat,2")
        assert found[0].startswith("line 2: class 'cat': a frequency is not negative; got -1")
        assert found[1].startswith("line 4: class 'snow leopard': the value must be a number; got 'ten'")
        assert found[2].startswith("line 5: class 'snow leopard': the value is empty")
        assert found[3] == "line 3: the model has no class 'dgo'. Did you mean 'dog'?"
        assert found[4].startswith("line 6: class 'cat' stands twice with different values (first in line 2)")
        assert found[5].startswith("1 of 3 classes are missing: 'dog'")

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ("12%", "percent sign"),
            ('"1,000"', "thousands separator"),
            ('"0,5"', "decimal mark"),
            ("nan", "must be a number"),
            ("inf", "must be a number"),
            ("true", "must be a number"),
            ("1e999", "finite"),
            ("1e300", "2**53"),
            ("", "empty"),
            ("1,000", "thousands separator"),
        ],
    )
    def test_a_value_that_is_no_plain_number(self, value, said):
        assert said in problems(f"class,count\ncat,{value}\ndog,30\nsnow leopard,10")[0]

    @pytest.mark.parametrize("value", ["NaN", "Infinity", "true", '"60"', "null", "[1]", "-1", "1e999", "9" * 5000])
    def test_a_json_value_that_is_no_plain_number(self, value):
        assert "class 'cat'" in problems(f'{{"cat": {value}, "dog": 30, "snow leopard": 10}}')[0]

    @pytest.mark.parametrize(
        "text", ["cat,60.5\ndog,30\nsnow leopard,10", '{"cat": 0.6, "dog": 0.3, "snow leopard": 0.1}']
    )
    def test_training_counts_are_whole(self, text):
        assert "whole number of examples" in problems(text, role="training")[0]

    def test_a_json_key_that_stands_twice(self):
        assert "twice" in problems('{"cat": 60, "dog": 30, "snow leopard": 10, "cat": 61}')[0]

    def test_a_list_of_the_wrong_length(self):
        assert problems("[60, 30]") == ["a list has one number for each of the 3 classes, in class order; got 2."]

    def test_positions_are_not_guessed_from_numbers(self):
        assert "name the column 'index'" in problems("class,count\n0,60\n1,30\n2,10")[0]

    @pytest.mark.parametrize("header", ["class,count,count", "class,count,prior"])
    def test_two_columns_of_values(self, header):
        assert "header has 2 (count, " in problems(f"{header}\ncat,60,1\ndog,30,1\nsnow leopard,10,1")[0]

    def test_an_object_in_place_of_a_number(self):
        assert "got an object" in problems('{"cat": {"count": 60}, "dog": 30, "snow leopard": 10}')[0]

    def test_an_unknown_header(self):
        assert "header 'species,amount' is not known" in problems("species,amount\ncat,60")[0]

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"", "empty"),
            (b" \n ", "empty"),
            ("cat,60".encode("utf-16"), "UTF-16"),
            ("caf\u00e9,60".encode("latin-1"), "not UTF-8: byte 3 is 0xe9"),
            (b"cat,\0", "NUL"),
            (b'{"cat": 60', "not readable as JSON"),
            (b"[" * 100_000, "nested"),
            (b'class,count\n"cat,60', "not readable as CSV"),
            (b"x" * (MAX_BYTES + 1), "at most 1,048,576 bytes"),
        ],
    )
    def test_a_file_that_cannot_be_read(self, data, said):
        assert said in problems(data)[0]
