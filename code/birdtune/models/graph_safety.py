"""Whether loading a SavedModel can do more than compute: its graph is read as data, and nothing in it is run.

    saved_model.pb ─▶ require_numbers_only ─▶ nothing, or CheckpointError that names the operations

A SavedModel is a program. TensorFlow has operations that write files, start Python code or open connections, and a
graph that holds one may run it when it is loaded or asked. So only operations that compute numbers may be in it, by
a list of what is allowed: what TensorFlow will add some day is refused until somebody has looked at it. Every
SavedModel also has functions that save and restore its variables; these may hold operations on files, as long as
nothing calls them but the two nodes that its saver names, which are not run when it is loaded or asked.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from birdtune.errors import CheckpointError, shown
from birdtune.runtime.storage import read_error
from birdtune.runtime.text import some

GRAPH = "saved_model.pb"

# Operations by what they do; all of them read and give tensors and nothing else, or variables of the model itself.
_CONTROL = """
    Assert Case Const ControlTrigger Enter Exit Identity IdentityN If LoopCond Merge NextIteration NoOp
    PartitionedCall Placeholder PlaceholderWithDefault PreventGradient StatefulPartitionedCall StatelessCase
    StatelessIf StatelessWhile StopGradient Switch While
"""
_VARIABLES = """
    AssignAddVariableOp AssignSubVariableOp AssignVariableOp DisableCopyOnRead DestroyResourceOp ReadVariableOp
    ResourceGather ResourceGatherNd VarHandleOp VarIsInitializedOp VariableShape
"""
_ARRAYS = """
    BatchToSpace BatchToSpaceND Bitcast BroadcastArgs BroadcastTo Concat ConcatV2 DepthToSpace Diag DiagPart
    DynamicPartition DynamicStitch EnsureShape ExpandDims ExtractImagePatches Fill Gather GatherNd GatherV2
    InvertPermutation LinSpace ListDiff MatrixBandPart MatrixDiag MatrixDiagPart MatrixDiagPartV3 MatrixDiagV3
    MirrorPad OneHot OnesLike Pack Pad PadV2 ParallelConcat ParallelDynamicStitch Range Rank Reshape Reverse
    ReverseSequence ReverseV2 Roll ScatterNd Shape ShapeN Size Slice Snapshot SpaceToBatch SpaceToBatchND SpaceToDepth
    Split SplitV Squeeze StridedSlice TensorScatterAdd TensorScatterUpdate Tile Transpose Unique UniqueV2
    UniqueWithCounts Unpack Where ZerosLike
"""
_LISTS = """
    EmptyTensorList TensorArrayCloseV3 TensorArrayConcatV3 TensorArrayGatherV3 TensorArrayReadV3 TensorArrayScatterV3
    TensorArraySizeV3 TensorArraySplitV3 TensorArrayV3 TensorArrayWriteV3 TensorListConcat TensorListConcatV2
    TensorListElementShape TensorListFromTensor TensorListGather TensorListGetItem TensorListLength TensorListPopBack
    TensorListPushBack TensorListReserve TensorListResize TensorListScatter TensorListScatterV2 TensorListSetItem
    TensorListSplit TensorListStack
"""
_NUMBERS = """
    Abs Acos Acosh Add AddN AddV2 All Angle Any ApproximateEqual ArgMax ArgMin Asin Asinh Atan Atan2 Atanh Betainc
    Bincount BitwiseAnd BitwiseOr BitwiseXor Bucketize Cast Ceil CheckNumerics ClipByValue Complex ComplexAbs Conj Cos
    Cosh Cross Cumprod Cumsum CumulativeLogsumexp DenseBincount Digamma Div DivNoNan Einsum Equal Erf Erfc Erfinv Exp
    Expm1 Floor FloorDiv FloorMod Greater GreaterEqual Igamma Igammac Imag InTopK InTopKV2 Inv Invert IsFinite IsInf
    IsNan LeftShift Less LessEqual Lgamma Log Log1p LogicalAnd LogicalNot LogicalOr Max Maximum Mean Min Minimum Mod
    Mul MulNoNan Ndtri Neg NextAfter NotEqual Polygamma Pow Prod Real RealDiv Reciprocal RightShift Rint Round Rsqrt
    SegmentMax SegmentMean SegmentMin SegmentProd SegmentSum Select SelectV2 Sigmoid Sign Sin Sinh Sqrt Square
    SquaredDifference Sub Sum Tan Tanh TopK TopKV2 TruncateDiv TruncateMod UnsortedSegmentMax UnsortedSegmentMin
    UnsortedSegmentProd UnsortedSegmentSum Xdivy Xlog1py Xlogy Zeta
"""
_ALGEBRA = """
    BatchMatMul BatchMatMulV2 BatchMatMulV3 Cholesky FFT FFT2D IFFT IFFT2D IRFFT IRFFT2D MatMul MatrixDeterminant
    MatrixInverse MatrixSolve MatrixTriangularSolve Qr RFFT RFFT2D SelfAdjointEigV2 Svd
"""
_LAYERS = """
    AvgPool AvgPool3D BiasAdd BiasAddV1 Conv Conv2D Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 CropAndResize
    DepthwiseConv2dNative Dilation2D Elu FractionalAvgPool FractionalMaxPool FusedBatchNorm FusedBatchNormV2
    FusedBatchNormV3 L2Loss LRN LeakyRelu LogSoftmax MaxPool MaxPool3D MaxPoolV2 Relu Relu6 ResizeArea ResizeBicubic
    ResizeBilinear ResizeNearestNeighbor Selu Softmax Softplus Softsign _FusedBatchNormEx _FusedConv2D _FusedMatMul
    FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel QuantizeAndDequantizeV2
    QuantizeAndDequantizeV3 QuantizeAndDequantizeV4
"""
_SOUND = "AudioSpectrogram Mfcc"
_CHANCE = """
    Multinomial RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt StatelessMultinomial
    StatelessRandomGetAlg StatelessRandomGetKeyCounter StatelessRandomNormal StatelessRandomNormalV2
    StatelessRandomUniform StatelessRandomUniformV2 StatelessTruncatedNormal StatelessTruncatedNormalV2
    TruncatedNormal
"""
ALLOWED = frozenset(
    " ".join((_CONTROL, _VARIABLES, _ARRAYS, _LISTS, _NUMBERS, _ALGEBRA, _LAYERS, _SOUND, _CHANCE)).split()
)
# What the functions that save and restore variables are made of, beside the above.
SAVING = frozenset(
    ("MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename", "StaticRegexFullMatch", "StringJoin")
)


# Programs of JAX, as Perch is: StableHLO, which computes numbers and nothing else as long as it calls no custom code.
_STABLEHLO, _CUSTOM_CODE = "XlaCallModule", b"custom_call"
# Attribute of functions that TensorFlow's optimizer may put in each other's place.
_INTERFACE = "api_implements"


_EXPORT_AGAIN = "Use a model that birdtune exported; if this is one, export it again."


def require_numbers_only(folder: Path, then: str = _EXPORT_AGAIN) -> None:
    """Refuse a SavedModel whose graph could do more than compute. Loads TensorFlow's description of graphs, no graph.

    Args:
        then: what to do about one that is refused; by default, about a model that is to be served.

    Raises:
        CheckpointError: it has such operations, or there is no graph that can be read.
        RetryableError: the storage fails.
    """
    found = read_graph(folder)
    is_only_one = len(found.meta_graphs) == 1  # several are loaded as in TensorFlow 1
    bad = {name for graph in found.meta_graphs for name in _more_than_numbers(graph, is_only_one)}
    if bad:
        raise CheckpointError(
            f"{shown(folder)}: was not loaded. Its graph holds operations that are not on the list of those that only "
            "compute, and that could read or write files, run code or open connections: "
            f"{some(sorted(bad))}. {then}"
        )


def read_graph(folder: Path) -> Any:
    """The SavedModel message in a folder, as data. Raises as `require_numbers_only`."""
    from tensorflow.core.protobuf import saved_model_pb2

    found = saved_model_pb2.SavedModel()
    path = folder / GRAPH
    try:
        found.ParseFromString(path.read_bytes())
        if not found.meta_graphs:
            raise ValueError("no graph")
    except Exception as fault:  # whatever the parser makes of it, the file is the cause
        message = f"{shown(path)}: is missing or damaged. Copy the model again, or export it again."
        raise read_error(fault, path, message, CheckpointError) from fault
    return found


def _more_than_numbers(graph: Any, is_only_one: bool) -> set[str]:
    """Operations of a MetaGraphDef that are refused."""
    functions: dict[str, list[Any]] = {}  # a name that comes twice has the nodes of both
    for function in graph.graph_def.library.function:
        functions.setdefault(function.signature.name, []).extend(function.node_def)
    own = graph.graph_def.node  # operations on files stand in functions, even those that save
    bad = {node.op for nodes in (own, *functions.values()) for node in nodes if not _is_plain_stablehlo(node)}
    apart = _for_saving_alone(graph, functions) if is_only_one else set()
    callable_nodes = [*own, *(node for name, nodes in functions.items() if name not in apart for node in nodes)]
    return (bad - ALLOWED - SAVING) | {node.op for node in callable_nodes if node.op in SAVING}


def _is_plain_stablehlo(node: Any) -> bool:
    return node.op == _STABLEHLO and _CUSTOM_CODE not in node.attr["module"].s


def _for_saving_alone(graph: Any, functions: Mapping[str, list[Any]]) -> set[str]:
    """Functions that only the nodes that save and restore the variables call.

    TensorFlow leaves these nodes alone only if there is an object graph. Where there is none, as in TensorFlow 1, it
    runs the one that restores when it loads the model.
    """
    if not graph.HasField("object_graph_def"):
        return set()
    used = {_node_of(name) for node in graph.graph_def.node for name in node.input}
    used |= {
        _node_of(tensor.name)
        for signature in graph.signature_def.values()
        for tensor in (*signature.inputs.values(), *signature.outputs.values())
    }
    saver = {_node_of(graph.saver_def.save_tensor_name), _node_of(graph.saver_def.restore_op_name)} - used
    saving = _reached((node for node in graph.graph_def.node if node.name in saver), functions)
    others = [node for node in graph.graph_def.node if node.name not in saver]
    others += [node for name in functions if name not in saving for node in functions[name]]
    # Called by name from the object graph, or put by the optimizer in the place of another with the same interface.
    named = _named_by_objects(graph.object_graph_def) | {
        function.signature.name for function in graph.graph_def.library.function if _INTERFACE in function.attr
    }
    others += [node for name in named for node in functions.get(name, ())]
    return saving - named - _reached(others, functions)


def _node_of(tensor: str) -> str:
    """`^name`, `name:0` or `name` → name."""
    return tensor.removeprefix("^").split(":")[0]


def _named_by_objects(objects: Any) -> set[str]:
    """Functions that the objects of a SavedModel can call."""
    found = set(objects.concrete_functions)
    for node in objects.nodes:
        found.update(node.function.concrete_functions)
        found.update((node.bare_concrete_function.concrete_function_name, node.captured_tensor.concrete_function))
    return found


def _reached(nodes: Iterable[Any], functions: Mapping[str, list[Any]]) -> set[str]:
    """Functions that some nodes call, and those that these call."""
    found: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        called = {node.op, *(name for value in node.attr.values() for name in _called(value))}
        for name in (called & functions.keys()) - found:
            found.add(name)
            waiting += functions[name]
    return found


def _called(value: Any) -> Iterator[str]:
    """Functions in an attribute of a node, and in the attributes with which these are called."""
    for function in (value.func, *value.list.func):
        yield function.name
        for inner in function.attr.values():
            yield from _called(inner)
