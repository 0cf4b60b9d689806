"""The protocol buffers that TensorBoard reads, made from plain values."""

from __future__ import annotations

from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING

from lightning_gradguard.tensorboard.flow import PLUGIN_NAME, Array


def string_value(tag: str, content: bytes, metadata: SummaryMetadata) -> Summary.Value:
    """Returns a one-element string tensor under a tag."""
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, string_val=[content], tensor_shape=shape)
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def matrix_value(tag: str, matrix: Array, metadata: SummaryMetadata | None) -> Summary.Value:
    """Returns a float32 matrix under a tag; metadata is needed only with the first one in a file."""
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in matrix.shape])
    tensor = TensorProto(dtype=DT_FLOAT, tensor_content=matrix.astype("<f4").tobytes(), tensor_shape=shape)
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def plugin_metadata(content: bytes) -> SummaryMetadata:
    """Metadata of our own plugin. Without the data class both of TensorBoard's loaders find nothing."""
    plugin_data = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=content)
    return SummaryMetadata(plugin_data=plugin_data, data_class=DATA_CLASS_TENSOR)
