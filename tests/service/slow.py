"""A network that takes its time, for tests of what waits for it."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

SIDE = 1000  # of the matrices that are multiplied: some hundredths of a second each


def slowly(times: int) -> Callable[[onnx.ModelProto], None]:
    """For `make_bundle(edit_graph=...)`: the same logits, after so many products of large matrices."""

    def edit(model: onnx.ModelProto) -> None:
        graph = model.graph
        zeros = numpy_helper.from_array(np.zeros((SIDE, SIDE), dtype=np.float32), "zeros")
        graph.initializer.append(zeros)
        nodes = [
            helper.make_node("ReduceMean", ["as_float"], ["mean_pixel"], keepdims=0),
            helper.make_node("Add", ["zeros", "mean_pixel"], ["product_0"]),
        ]
        for number in range(times):
            nodes.append(helper.make_node("MatMul", [f"product_{number}", "zeros"], [f"product_{number + 1}"]))
        nodes += [
            helper.make_node("ReduceMean", [f"product_{times}"], ["nothing"], keepdims=0),
            helper.make_node("Add", ["product", "nothing"], ["late_product"]),
        ]
        position = next(index for index, node in enumerate(graph.node) if node.output[0] == "uncentred")
        graph.node[position].input[0] = "late_product"
        for offset, node in enumerate(nodes):
            graph.node.insert(position + offset, node)

    return edit
