"""The KServe v2 protocol on the wire: a table written out from the public protocol, not from our file."""

from google.protobuf.descriptor import Descriptor

from l2r2_serving.inference import grpc_predict_v2_pb2 as pb

PUBLIC = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"live": (1, "bool")},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"ready": (1, "bool")},
    "ModelReadyRequest": {"name": (1, "string"), "version": (2, "string")},
    "ModelReadyResponse": {"ready": (1, "bool")},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"name": (1, "string"), "version": (2, "string"), "extensions": (3, "string*")},
    "ModelMetadataRequest": {"name": (1, "string"), "version": (2, "string")},
    "ModelMetadataResponse": {
        "name": (1, "string"),
        "versions": (2, "string*"),
        "platform": (3, "string"),
        "inputs": (4, "TensorMetadata*"),
        "outputs": (5, "TensorMetadata*"),
    },
    "ModelMetadataResponse.TensorMetadata": {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "int64*")},
    "ModelInferRequest": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "ParametersEntry*"),
        "inputs": (5, "InferInputTensor*"),
        "outputs": (6, "InferRequestedOutputTensor*"),
        "raw_input_contents": (7, "bytes*"),
    },
    "ModelInferRequest.InferInputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "int64*"),
        "parameters": (4, "ParametersEntry*"),
        "contents": (5, "InferTensorContents"),
    },
    "ModelInferRequest.InferRequestedOutputTensor": {"name": (1, "string"), "parameters": (2, "ParametersEntry*")},
    "ModelInferResponse": {
        "model_name": (1, "string"),
        "model_version": (2, "string"),
        "id": (3, "string"),
        "parameters": (4, "ParametersEntry*"),
        "outputs": (5, "InferOutputTensor*"),
        "raw_output_contents": (6, "bytes*"),
    },
    "ModelInferResponse.InferOutputTensor": {
        "name": (1, "string"),
        "datatype": (2, "string"),
        "shape": (3, "int64*"),
        "parameters": (4, "ParametersEntry*"),
        "contents": (5, "InferTensorContents"),
    },
    "InferParameter": {
        "bool_param": (1, "bool"),
        "int64_param": (2, "int64"),
        "string_param": (3, "string"),
        "double_param": (4, "double"),
        "uint64_param": (5, "uint64"),
    },
    "InferTensorContents": {
        "bool_contents": (1, "bool*"),
        "int_contents": (2, "int32*"),
        "int64_contents": (3, "int64*"),
        "uint_contents": (4, "uint32*"),
        "uint64_contents": (5, "uint64*"),
        "fp32_contents": (6, "float*"),
        "fp64_contents": (7, "double*"),
        "bytes_contents": (8, "bytes*"),
    },
}
"""Message → field → number and type, * where repeated. Source: kserve/open-inference-protocol."""

METHODS = ["ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"]


def shown(message: Descriptor) -> dict[str, tuple[int, str]]:
    kinds = {1: "double", 2: "float", 3: "int64", 4: "uint64", 5: "int32", 8: "bool", 9: "string", 12: "bytes"}
    kinds[13] = "uint32"
    return {
        each.name: (
            each.number,
            (each.message_type.name if each.message_type else kinds[each.type]) + "*" * each.is_repeated,
        )
        for each in message.fields
    }


def test_names_numbers_and_types_are_the_public_protocols() -> None:
    found = {}
    for name, message in pb.DESCRIPTOR.message_types_by_name.items():
        found[name] = shown(message)
        for inner in message.nested_types:
            if not inner.GetOptions().map_entry:
                found[f"{name}.{inner.name}"] = shown(inner)
    assert found == PUBLIC


def test_parameters_are_maps_from_text_and_one_of_five_kinds() -> None:
    for message in (
        pb.ModelInferRequest,
        pb.ModelInferRequest.InferInputTensor,
        pb.ModelInferRequest.InferRequestedOutputTensor,
        pb.ModelInferResponse,
        pb.ModelInferResponse.InferOutputTensor,
    ):
        entry = message.DESCRIPTOR.fields_by_name["parameters"].message_type
        assert entry.GetOptions().map_entry
        assert shown(entry) == {"key": (1, "string"), "value": (2, "InferParameter")}
    (choice,) = pb.InferParameter.DESCRIPTOR.oneofs
    assert [each.name for each in choice.fields] == list(PUBLIC["InferParameter"])
    assert choice.name == "parameter_choice"


def test_methods_are_the_public_protocols() -> None:
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == "inference.GRPCInferenceService"
    assert [
        (
            each.name,
            each.input_type.full_name,
            each.output_type.full_name,
            each.client_streaming or each.server_streaming,
        )
        for each in service.methods
    ] == [(name, f"inference.{name}Request", f"inference.{name}Response", False) for name in METHODS]
