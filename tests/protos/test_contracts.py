"""What holds for every contract: fresh stubs, header-first streams, turn and chunk on all media."""

import importlib.util
from pathlib import Path

import pytest
from google.protobuf.descriptor import (
    Descriptor,
    FileDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)

from talkingmachines.v1 import avatar_pb2, llm_bridge_pb2, media_pb2, score_pb2, vae_pb2

ROOT = Path(__file__).resolve().parents[2]
FILES: list[FileDescriptor] = [
    module.DESCRIPTOR for module in (avatar_pb2, llm_bridge_pb2, media_pb2, score_pb2, vae_pb2)
]
SERVICES: list[ServiceDescriptor] = [
    service for file in FILES for service in file.services_by_name.values()
]
STREAMS: list[MethodDescriptor] = [
    method
    for service in SERVICES
    for method in service.methods
    if method.client_streaming or method.server_streaming
]


def test_stubs_are_fresh() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "protos" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.stale() == []


def test_every_service_has_its_streams() -> None:
    assert [method.full_name.split(".")[-1] for method in STREAMS] == [
        "Talk",
        "Converse",
        "Denoise",
        "Decode",
    ]


@pytest.mark.parametrize("method", STREAMS, ids=lambda method: method.name)
def test_streams_are_bidirectional_and_header_first(method: MethodDescriptor) -> None:
    assert method.client_streaming
    assert method.server_streaming
    request, response = _choices(method.input_type), _choices(method.output_type)
    assert request[0] in {"open", "attach"}
    assert response[0] in {"ready", "opened", "attached"}


@pytest.mark.parametrize("name", ["Pcm", "Latents", "VideoFrame"])
def test_media_carries_turn_and_chunk(name: str) -> None:
    fields = media_pb2.DESCRIPTOR.message_types_by_name[name].fields_by_name
    assert {"turn", "chunk"} <= set(fields.keys())


@pytest.mark.parametrize("file", FILES, ids=lambda file: Path(file.name).stem)
def test_directories_mirror_the_package(file: FileDescriptor) -> None:
    assert str(Path(file.name).parent) == file.package.replace(".", "/")


def _choices(message: Descriptor) -> list[str]:
    (oneof,) = message.oneofs
    return [field.name for field in oneof.fields]
