"""Class-frequency files that are refused: everything wrong at once, by line, with the way out."""

import pytest

from models.calibration.errors import CalibrationError
from models.calibration.frequencies import MAX_BYTES, read_frequencies
from tests.models.calibration.frequency_files import CLASSES, problems

COUNTS = [60, 30, 10]
CSV = "class,count\ncat,60\ndog,30\nsnow leopard,10\n"


class TestWhatIsRefused:
    def test_everything_wrong_is_said_at_once_with_its_line(self):
        found = problems("class,count\ncat,-1\ndgo,30\nsnow leopard,ten\nsnow leopard,\ncat,2")
        assert found[0].startswith("line 2: class 'cat': a frequency is not negative; got -1")
        assert found[1] == "line 3: the model has no class 'dgo'. Did you mean 'dog'?"
        assert found[2].startswith("line 4: class 'snow leopard': the value must be a number; got 'ten'")
        assert found[3].startswith("line 5: class 'snow leopard': the value is empty")
        assert found[4].startswith("line 6: class 'cat' stands twice with different values (first in line 2)")
        assert found[5].startswith("1 of 3 classes are missing: 'dog'")
        assert len(found) == 6

    def test_zeros_and_fractions_of_training_counts_are_said_together_with_the_rest(self):
        found = problems("cat,0\ndog,1.5\ncow,3", role="training")
        assert [each.split(";")[0] for each in found] == [
            "line 2: class 'dog': a training count is a whole number of examples",
            "line 3: the model has no class 'cow'.",
            "1 of 3 classes are missing: 'snow leopard'. Every class needs at least one training example.",
            "every class needs at least one training example",
        ]

    def test_every_line_of_json_is_named_too(self):
        found = problems('{\n"cat": -1,\n"dog": "x",\n"snow leopard": 1,\n\n"snow leopard": 2}')
        assert [each.split(":")[0] for each in found] == ["line 2", "line 3", "line 6"]
        found = problems('[\n{"class": "cat", "n": 1},\n{"class": "dgo", "n": 1},\n{"n": 1}]')
        assert [each.split(":")[0] for each in found[:2]] == ["line 3", "line 4"]

    def test_a_hundred_problems_are_listed_and_the_rest_is_counted(self):
        found = problems("\n".join(f"beast {number},1" for number in range(250)))
        assert found[0].startswith("line 1:")
        assert found[99].startswith("line 100:")
        assert found[-1] == "150 more problems are counted and not listed."

    def test_thousands_of_unknown_names_are_no_search_of_minutes(self):
        """Each nearest name is a search through all classes; without a limit, 8,000 of them took an hour."""
        classes = [f"species number {number}" for number in range(8142)]
        found = problems("\n".join(f"spezies number {number}x,1" for number in range(8142)), classes=classes)
        assert "Did you mean 'species number" in found[0]
        assert "Did you mean" not in found[50]

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
            ("1.000", "may mean 1 or 1000"),
            ("1.500", "may mean 1.5 or 1500, as other values have no point. Write 1500, or give all a point."),
            ("999.999", "may mean 999.999 or 999999"),
            ("1.000.000", "thousands separator"),
            ('"1.000,5"', "thousands separator"),
            ("1'000", "thousands separator"),
            ("9007199254740993", "less than 2**53"),
            ("1_000", "must be a number"),
            ("\u0661\u0662", "must be a number"),
            ("9" * 1001, "at most 1000 characters"),
        ],
    )
    def test_a_value_that_is_no_plain_number(self, value, said):
        assert said in problems(f"class,count\ncat,{value}\ndog,30\nsnow leopard,10")[0]

    @pytest.mark.parametrize(
        "value", ["NaN", "Infinity", "true", '"60"', "null", "[1]", "-1", "1e999", "9" * 5000, "9007199254740993"]
    )
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

    @pytest.mark.parametrize("small", ["2", "10"])
    def test_a_thousand_with_a_point_beside_whole_numbers_of_any_size(self, small):
        found = problems(f"1.500\n2.300\n{small}")
        assert [each.split(" may mean")[0] for each in found] == ["line 1: '1.500'", "line 2: '2.300'"]

    @pytest.mark.parametrize(
        ("text", "way_out"),
        [
            ("class,count\n0,60\n1,30\n2,10", "name the column 'index'"),
            ("0,60\n1,30\n2,10", "write `index,count` as the first line"),
            ("0\t60\n1\t30\n2\t10", "write `index\tcount` as the first line"),
        ],
    )
    def test_positions_are_not_guessed_from_numbers(self, text, way_out):
        assert f"To match by position, {way_out}." in problems(text)[0]

    def test_a_stray_quote_that_swallows_lines(self):
        assert problems('class,count\n"cat,60\ndog",30\nsnow leopard,10') == [
            "line 2: a cell holds a line break. Quotes begin and end on one line."
        ]

    def test_two_keys_of_a_record_that_differ_only_in_case(self):
        found = problems('[\n{"class": "cat", "count": 60, "Count": 61},\n{"class": "dog", "count": 3}]')
        assert found[0] == (
            "line 2: keys of a record differ in more than case; got 'class', 'count', 'Count'. Keep one."
        )

    @pytest.mark.parametrize(
        ("option", "said"),
        [
            ({"zeros": "xyz"}, "zeros is one of error, impossible, smooth; got 'xyz'."),
            ({"role": "test"}, "role is one of target, training; got 'test'."),
            ({"missing": None}, "missing is one of error, zero; got None."),
        ],
    )
    def test_an_option_with_an_unknown_value(self, option, said):
        with pytest.raises(CalibrationError, match=said):
            read_frequencies(CSV.encode(), CLASSES, **{"role": "target", **option})

    @pytest.mark.parametrize("header", ["class,count,count", "class,count,prior"])
    def test_two_columns_of_values(self, header):
        assert "header has 2 (count, " in problems(f"{header}\ncat,60,1\ndog,30,1\nsnow leopard,10,1")[0]

    def test_two_columns_of_classes(self):
        assert "one column holds the classes" in problems("class,count,class\ncat,60,dog")[0]

    def test_two_values_of_a_record(self):
        assert (
            "one value; this one has 2 (count, prior)" in problems('[{"class": "cat", "count": 60, "prior": 0.6}]')[0]
        )

    def test_a_key_that_stands_twice_in_a_record(self):
        assert problems('[\n{"class": "cat", "count": 60, "count": 61}]') == [
            "line 2: an object names the same key twice. Keep one."
        ]

    @pytest.mark.parametrize(
        ("key", "said"),
        [
            ("CAT", "Did you mean 'cat'?"),
            ("snow_leopard", "Did you mean 'snow leopard'?"),
            ("Snow-Leopard", "Did you mean 'snow leopard'?"),
            ("snow\u00a0leopard", "They look alike: the file has 'snow\\xa0leopard', the model 'snow leopard'."),
            ("c\u200bat", "the file has 'c\\u200bat'"),
            ("elephant", "no class 'elephant'."),
        ],
    )
    def test_a_name_that_is_nearly_right_is_a_suggestion_and_never_a_match(self, key, said):
        found = problems(f"{CSV}{key},60")
        assert len(found) == 1
        assert found[0].startswith("line 5: the model has no class ")
        assert said in found[0]

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
            (b'class,count\n"cat,60', "line 2: not readable as CSV"),
            (b"PK\x03\x04 a workbook", "Excel"),
            (b"\x1f\x8b\x08", "gzip"),
            (b",,\n,", "no cell with text"),
            (b"cat 60\ndog 30", "separated by a comma, a semicolon or a tab"),
            (b'{"cat" 60}', "line 1: not readable as JSON: expected ':'; got '6' (column 8)"),
            (b"[1,\n2 3]", "line 2: not readable as JSON: expected ','; got '3' (column 3)"),
            (b"[1, 2, 3] 4", "expected the end of the file"),
            (b"{60}", "a key in double quotes"),
            (b"x" * (MAX_BYTES + 1), "at most 1,048,576 bytes"),
        ],
    )
    def test_a_file_that_cannot_be_read(self, data, said):
        assert said in problems(data)[0]
