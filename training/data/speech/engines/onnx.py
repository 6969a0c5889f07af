"""Running the neural voices' ONNX graphs, on one thread: the corpus is made by processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.data.speech.speech_engine import missing_package


def open_graph(path: Path) -> Any:
    """A session over a graph; untyped, as onnxruntime is.

    Raises:
        MissingTool: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise missing_package("onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
