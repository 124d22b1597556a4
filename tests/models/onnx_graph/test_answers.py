import numpy as np
import pytest

from models.onnx_graph.answers import as_logits
from models.onnx_graph.errors import InvalidModel

PROBS = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])


def test_the_logits_of_probabilities_are_their_logarithms_and_finite_where_one_underflowed():
    logits = as_logits(PROBS.astype(np.float32), "the file", "probabilities")
    np.testing.assert_allclose(logits[0], np.log(PROBS[0]), rtol=1e-6)
    np.testing.assert_allclose(logits[1], [0, np.log(1e-30), np.log(1e-30)])


@pytest.mark.parametrize("rows", [PROBS - 0.5, PROBS * 3, np.array([[0.5, np.nan]])])
def test_what_are_not_probabilities_are_not_taken_for_them(rows):
    with pytest.raises(InvalidModel, match=r"those of the file do not\. Say output_kind=logits"):
        as_logits(rows, "the file", "probabilities")
    np.testing.assert_array_equal(as_logits(rows, "the file", "logits"), rows)


@pytest.mark.parametrize("rows", [PROBS, PROBS.astype(np.float32), np.eye(3, dtype=np.int64)])
def test_probabilities_are_not_taken_for_logits(rows):
    with pytest.raises(InvalidModel, match=r"the rows of the file .* Say output_kind=probabilities"):
        as_logits(rows, "the file", "logits")


@pytest.mark.parametrize("rows", [np.zeros((0, 3)), np.zeros(3), np.array([["a", "b"]])])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_what_is_no_array_of_rows_is_left_to_who_asks_for_them(rows, kind):
    assert as_logits(rows, "the file", kind) is rows
