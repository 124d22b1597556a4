import json

import numpy as np
import pytest

from models.calibration.errors import CalibrationError, FrequencyFileError
from models.calibration.frequencies import FORMATS, MAX_BYTES, read_frequencies

CLASSES = ("cat", "dog", "snow leopard")
COUNTS = [60, 30, 10]
CSV = "class,count\ncat,60\ndog,30\nsnow leopard,10\n"


def read(text, role="target", classes=CLASSES, **options):
    data = text if isinstance(text, bytes) else text.encode()
    return read_frequencies(data, classes, role=role, **options)


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
            json.dumps([{"name": name, "image_count": n} for name, n in zip(CLASSES, COUNTS, strict=True)], indent=2),
            '"snow leopard",10\n"cat",60\n"dog",30',
            "60\n30\n10\n",
            "6.0e+01\r\n\r\n3.0e+01\r\n1.0e+01",
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
        assert read(CSV).format_detected == (
            "CSV with header, classes by name from column 'class', values from column 'count'; "
            "3 classes, counts, total 100"
        )
        assert read(json.dumps([6, 3, 1.5])).format_detected == (
            "JSON list in class order; 3 classes, weights, total 10.5"
        )

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (CSV, ("csv", "name", True, ",")),
            (CSV.split("\n", 1)[1].replace(",", ";"), ("csv", "name", False, ";")),
            ("id\tn\n0\t60\n1\t30\n2\t10", ("csv", "index", True, "\t")),
            ("60\n30\n10", ("numbers", "position", False, None)),
            (json.dumps(COUNTS), ("json", "position", False, None)),
            (json.dumps(dict(zip(CLASSES, COUNTS, strict=True))), ("json", "name", False, None)),
        ],
    )
    def test_says_to_programs_what_was_detected(self, text, said):
        found = read(text)
        assert (found.format, found.matched_by, found.header, found.delimiter) == said

    def test_names_match_after_unicode_normalisation(self):
        composed, decomposed = "caf\u00e9", "cafe\u0301"
        found = read(f"{decomposed},1\n\ttea,2".replace("\t", "\u00a0"), classes=(composed, "tea"))
        assert found.counts.tolist() == [1, 2]
        assert decomposed in found.warnings[0]

    def test_two_classes_that_differ_only_in_normalisation_are_told_apart(self):
        composed, decomposed = "caf\u00e9", "cafe\u0301"
        classes = (composed, decomposed)
        assert read(f"{decomposed},1\n{composed},2", classes=classes).counts.tolist() == [2, 1]
        text = json.dumps({f" {composed}": 1, composed: 2, decomposed: 3})
        assert "no class ' caf\u00e9'" in problems(text, classes=classes)[0]

    def test_a_separator_inside_quotes_is_part_of_the_name(self):
        assert read('"cat; big",60\n"dog, small",30', classes=("cat; big", "dog, small")).counts.tolist() == [60, 30]

    @pytest.mark.parametrize(
        ("text", "classes"),
        [
            ("cat, small\t60\ndog, big\t30", ("cat, small", "dog, big")),
            ("cat; small\t60\ndog; big\t30", ("cat; small", "dog; big")),
            ("cat, small;60\ndog, big;30", ("cat, small", "dog, big")),
        ],
    )
    def test_a_tab_separates_before_a_semicolon_and_a_semicolon_before_a_comma(self, text, classes):
        assert read(text, classes=classes).counts.tolist() == [60, 30]

    @pytest.mark.parametrize("name", ["n", "count", "prior", "class", "path", "label"])
    def test_a_class_may_be_called_like_a_header(self, name):
        for text in (f"{name},5\ndog,7", f"class,count\n{name},5\ndog,7", f"dog,7\n{name},5"):
            assert read(text, classes=(name, "dog")).counts.tolist() == [5, 7]

    def test_classes_called_like_image_files_make_a_table(self):
        classes = ("scan, a.png", "b.png")
        for text in ('"scan, a.png",1\nb.png,3', 'b.png,3\n"scan, a.png",1', "scan, a.png\t1\nb.png\t3"):
            assert read(text, classes=classes).counts.tolist() == [1, 3]

    def test_records_with_lists_of_images_are_no_annotations(self):
        text = '[{"class": "cat", "count": 60, "images": [1]}, {"class": "dog", "count": 30}]'
        assert read(text, classes=("cat", "dog")).format == "json"

    def test_indices_may_be_padded_with_zeros(self):
        text = "index,count\n000000000002,10\n01,30\n0,60"
        assert read(text).counts.tolist() == COUNTS

    @pytest.mark.parametrize(
        ("values", "kind", "warning"),
        [
            ([0.6, 0.3, 0.1], "fractions", None),
            ([60.5, 29.5, 10], "percentages", "percentages"),
            ([60.5, 29.5, 10.4], "percentages", "percentages"),
            ([60.5, 29.5, 8], "weights", "normalised"),
            ([60.5, 29.5, 12], "weights", "normalised"),
            ([6.5, 3, 1], "weights", "normalised"),
        ],
    )
    def test_a_target_may_be_fractions_or_percentages(self, values, kind, warning):
        frequencies = read(json.dumps(values))
        assert frequencies.kind == kind
        assert [warning in text for text in frequencies.warnings] == ([True] if warning else [])
        np.testing.assert_allclose(frequencies.prior.probs, np.array(values) / sum(values))

    def test_a_line_that_stands_twice_alike_is_a_warning(self):
        assert read(CSV + "cat,60").warnings == ("classes that stand more than once, with the same value: 'cat'.",)

    @pytest.mark.parametrize(
        ("header", "values", "kind", "warning"),
        [
            ("percent", [60, 30, 10], "percentages", "percentages"),
            ("percent", [60, 30, 1], "weights", "header says percentages, but the values sum to 91"),
            ("fraction", [0.6, 0.3, 0.1009], "fractions", None),
            ("fraction", [0.6, 0.3, 0.2], "weights", "sum to 1.1"),
            ("prior", [6, 3, 1], "weights", "header says fractions"),
            ("frequency", [6, 3, 1], "counts", None),
            ("count", [6, 3, 1.5], "weights", "says counts, but not all values are whole (they sum to 10.5)"),
            ("n", [0.6, 0.3, 0.1], "fractions", "says counts, but not all values are whole"),
            ("counts", [60.5, 29.5, 10], "percentages", "says counts, but not all values are whole"),
        ],
    )
    def test_a_header_says_what_its_column_holds(self, header, values, kind, warning):
        lines = [f"{name},{value}" for name, value in zip(CLASSES, values, strict=True)]
        records = [{"class": name, header: value} for name, value in zip(CLASSES, values, strict=True)]
        for text in ("\n".join([f"class,{header}", *lines]), json.dumps(records)):
            found = read(text)
            assert found.kind == kind
            assert [warning in text for text in found.warnings] == ([True] if warning else [])
            assert found.prior.probs.sum() == pytest.approx(1)

    @pytest.mark.parametrize(
        "values",
        [
            ["1.5", "2.300", "480"],  # 1.5 is no thousand
            ["0.125", "2.300", "480"],
            ["12.345", "80.655", "7.0"],
            ["1.500", "2.300", "0"],
            ["1.500", "2.300", "1"],
            ["1.500", "2.300", "4.250"],
        ],
    )
    def test_a_point_is_a_decimal_mark_where_nothing_speaks_against_it(self, values):
        text = "\n".join(f"{name},{value}" for name, value in zip(CLASSES, values, strict=True))
        assert read(text, zeros="impossible").values.tolist() == [float(value) for value in values]

    def test_counts_that_may_be_percentages_are_warned_about(self):
        assert "not percentages" in read("60\n30\n10", role="training").warnings[0]
        assert read(CSV, role="training").warnings == ()

    def test_the_order_of_columns_and_other_columns_do_not_matter(self):
        assert read("n,wnid,class\n60,x,cat\n30,y,dog\n10,z,snow leopard").counts.tolist() == COUNTS


class TestZeros:
    ZERO = "cat,60\ndog,0\nsnow leopard,10"

    def test_are_an_error_unless_the_caller_says_what_they_mean(self):
        assert "zeros=impossible" in problems(self.ZERO)[0]

    def test_impossible_classes_get_probability_zero(self):
        assert read(self.ZERO, zeros="impossible").prior.probs[1] == 0

    def test_smoothing_adds_half_an_example(self):
        np.testing.assert_allclose(read(self.ZERO, zeros="smooth").prior.probs, np.array([60.5, 0.5, 10.5]) / 71.5)

    def test_smoothing_works_on_a_single_example_too(self):
        found = read("class,count\ncat,1\ndog,0\nsnow leopard,0", zeros="smooth")
        np.testing.assert_allclose(found.prior.probs, np.array([1.5, 0.5, 0.5]) / 2.5)

    def test_smoothing_needs_counts(self):
        assert "needs counts" in problems("cat,0.6\ndog,0\nsnow leopard,0.4", zeros="smooth")[0]

    def test_percentages_cannot_be_smoothed_as_if_they_were_counts(self):
        text = "class,percent\ncat,60\ndog,0\nsnow leopard,40"
        assert "needs counts; got percentages" in problems(text, zeros="smooth")[0]

    @pytest.mark.parametrize("zeros", ["error", "impossible", "smooth"])
    def test_a_training_class_is_never_empty(self, zeros):
        assert "at least one training example; 0 for 'dog'" in problems(self.ZERO, role="training", zeros=zeros)[0]

    def test_all_zero_is_refused(self):
        assert problems("cat,0\ndog,0\nsnow leopard,-0", zeros="impossible") == [
            "all values are 0. At least one class must occur."
        ]


class TestMissingClasses:
    PART = "cat,60\nsnow leopard,10"

    def test_are_an_error_unless_the_caller_says_that_they_have_none(self):
        assert problems(self.PART) == [
            "1 of 3 classes are missing: 'dog'. Write 0 for a class without any, or say missing=zero."
        ]

    def test_read_as_zero_they_are_listed_and_mean_what_zeros_mean(self):
        found = read(self.PART, missing="zero", zeros="smooth")
        np.testing.assert_allclose(found.prior.probs, np.array([60.5, 0.5, 10.5]) / 71.5)
        assert found.warnings == ("1 of 3 classes are missing: 'dog'. They were read as 0.",)
        assert "zeros=impossible" in problems(self.PART, missing="zero")[0]

    def test_are_refused_in_training_counts_whatever_the_caller_says(self):
        assert "at least one training example; 0 for 'dog'" in problems(self.PART, role="training", missing="zero")[0]

    def test_of_a_list_in_class_order_cannot_be_told(self):
        assert "one number for each of the 3 classes" in problems("60\n30", missing="zero")[0]


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
            "1 of 3 classes are missing: 'snow leopard'. Write 0 for a class without any, or say missing=zero.",
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


class TestOverride:
    def test_a_format_may_be_named(self):
        text = "scan.png,0\nb.png,1\nc.png,0"  # looks like a table of its first class, is a list of images
        classes = ("scan.png", "other")
        assert read(text, classes=classes, format="split-list").counts.tolist() == [2, 1]
        assert "the model has no class 'b.png'" in problems(text, classes=classes)[0]

    def test_an_unknown_format_is_answered_with_the_names_of_all(self):
        assert problems(CSV, format="excel") == [
            f"a format is one of {', '.join(FORMATS)}; got 'excel'. Leave it out to have it detected."
        ]

    @pytest.mark.parametrize("wrong", ["numbers", "json", "coco", "split-list", "folder-listing"])
    def test_the_wrong_format_is_an_error_and_not_another_guess(self, wrong):
        assert problems(CSV, format=wrong)
