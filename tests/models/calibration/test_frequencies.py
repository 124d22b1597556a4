"""What a class-frequency file says: formats, kinds of values, zeros, missing classes."""

import json

import numpy as np
import pytest

from models.calibration.frequencies import FORMATS
from tests.models.calibration.frequency_files import CLASSES, problems, read

COUNTS = [60, 30, 10]
CSV = "class,count\ncat,60\ndog,30\nsnow leopard,10\n"


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
