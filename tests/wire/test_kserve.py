"""KServe's messages: what is written is what a real Triton took, and what is read is what it sent."""

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.kserve import Tensor, infer_request, named, read_flag, read_inputs, read_response

LINES = (
    (Path(__file__).parents[1] / "dialects" / "recordings" / "real" / "triton" / "grpc.txt").read_text().splitlines()
)
RECORDED = {name: bytes.fromhex(message) for name, _, message in (line.partition(" ") for line in LINES[1:])}

INPUTS = {
    "text_input": Tensor("BYTES", 1),
    "stop_words": Tensor("BYTES", 2),
    "stream": Tensor("BOOL", 1),
    "seed": Tensor("UINT64", 2),
    "temperature": Tensor("FP32", 1),
}


def test_a_models_inputs_are_read_with_their_types_and_ranks() -> None:
    assert read_inputs(RECORDED["llm_metadata"]) == {
        "text_input": Tensor("BYTES", 1),
        "stream": Tensor("BOOL", 1),
        "max_tokens": Tensor("INT32", 1),
        "temperature": Tensor("FP32", 1),
        "top_p": Tensor("FP32", 1),
        "stop_words": Tensor("BYTES", 1),
    }
    assert {tensor.rank for tensor in read_inputs(RECORDED["trt_metadata"]).values()} == {2}


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("llm_1", {"text_output": "Grüße", "finish_reason": ""}),
        ("llm_2", {"text_output": " aus", "finish_reason": "stop"}),
        ("trt_1", {"text_output": "Grüße"}),
        ("trt_2", {"text_output": "Grüße aus"}),
    ],
)
def test_a_response_has_the_members_that_the_generate_extension_would_send(name: str, members: dict[str, Any]) -> None:
    told = {"model_name": name.partition("_")[0], "model_version": "1", "id": "x"}
    assert read_response(RECORDED[name]) == ("", told | members)


def test_an_error_has_words() -> None:
    assert read_response(RECORDED["trt_error"]).error == "failed before the first word"


# The library of Protocol Buffers reads these as what is meant: five tensors, an id and three parameters.
REQUEST = bytes.fromhex(
    "0a016d2a160a0a746578745f696e707574120542595445531a01012a170a0a73746f705f776f726473120542595445531a02"
    "01022a110a0673747265616d1204424f4f4c1a01012a120a0473656564120655494e5436341a0201012a160a0b74656d7065"
    "7261747572651204465033321a01011a017822150a066e756d626572120b10ffffffffffffffffff01220b0a046c6f726112"
    "031a016c220a0a04666c6167120208013a0602000000c3a93a0b01000000610200000062633a01013a080000000000000080"
    "3a040000803f"
)


def test_members_become_tensors_by_name_and_all_others_parameters() -> None:
    members = {
        "text_input": "é",
        "stop_words": ["a", "bc"],
        "stream": True,
        "seed": 2**63,
        "temperature": 1,
        "id": "x",
        "parameters": {"lora": "l", "flag": True},
        "number": -1,
    }
    assert infer_request("m", members, INPUTS) == REQUEST


@pytest.mark.parametrize(
    "members",
    [
        {"text_input": 5},
        {"text_input": "\ud800"},
        {"stream": "yes"} | {"seed": -1},
        {"seed": 2**64},
        {"seed": 1.5},
        {"temperature": "hot"},
        {"temperature": 1e300},
        {"unknown": [1]},
        {"unknown": {"a": 1}},
    ],
)
def test_a_value_that_fits_nowhere_is_a_value_error(members: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is no"):
        infer_request("m", members, INPUTS)


def test_questions_and_their_answers() -> None:
    assert named("llm") == b"\n\x03llm"
    assert read_flag(b"\x08\x01") is True
    assert read_flag(b"\x08\x00") is read_flag(b"") is False


def test_numbers_come_as_numbers_and_several_as_a_list() -> None:
    def output(name: str, datatype: str) -> bytes:
        described = b"\n" + bytes([len(name)]) + name.encode() + b"\x12" + bytes([len(datatype)]) + datatype.encode()
        return b"*" + bytes([len(described)]) + described

    raws = [struct.pack("<I", 7), struct.pack("<2f", 0.5, 1.5), b"??", b"\x01\x00\x00\x00\xff"]
    response = b"".join([output("n", "UINT32"), output("f", "FP32"), output("h", "FP16"), output("t", "BYTES")])
    response += b"".join(b"2" + bytes([len(raw)]) + raw for raw in raws)
    assert read_response(b"\x12" + bytes([len(response)]) + response).members == {
        "n": 7,
        "f": [0.5, 1.5],
        "h": [],
        "t": "\ufffd",
    }


@pytest.mark.parametrize("name", RECORDED)
def test_a_message_cut_short_is_a_value_error_or_a_shorter_message(name: str) -> None:
    for end in range(len(RECORDED[name])):
        for reader in (read_inputs, read_response):
            try:
                reader(RECORDED[name][:end])
            except ValueError:
                continue


@given(st.binary(max_size=40))
def test_no_bytes_are_more_than_a_value_error(message: bytes) -> None:
    for reader in (read_inputs, read_response, read_flag):
        try:
            reader(message)
        except ValueError:
            continue
