"""The strict reader against handcrafted bad files (fault F01) and random ones."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dsv2.checkpoint import safetensors
from dsv2.checkpoint.safetensors import ModelLoadError, open_safetensors, write_safetensors


def pack(header: Any, data: bytes = b"\0" * 8) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "seven bytes": (b"\0" * 7, "too short"),
    "zero length": (b"\0" * 16, "header of 0 bytes"),
    "length of 2^63": ((1 << 63).to_bytes(8, "little") + b"{}", "header of"),
    "length past the file": ((100).to_bytes(8, "little") + b"{}", "header of 100"),
    "header over 100 MB": ((100_000_001).to_bytes(8, "little") + b"{}", "header of 100000001"),
    "not UTF-8": (pack(b'{"\xff":1}'), "not valid JSON"),
    "not an object": (pack(b"[1]"), "does not start"),
    "leading space": (pack(b" {}"), "does not start"),
    "cut JSON": (pack(b'{"a":'), "not valid JSON"),
    "deep JSON": (pack(b'{"a":' * 50_000), "not valid JSON"),
    "duplicate names": (
        pack(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2)), "'a' twice"
    ),
    "duplicate keys": (
        pack(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), "twice"
    ),
    "hole": (pack({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20), "hole"),
    "hole at the start": (pack({"a": entry(offsets=(4, 12))}, b"\0" * 12), "hole"),
    "overlap": (pack({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12), "overlaps"),
    "same range twice": (pack({"a": entry(), "b": entry()}), "overlaps"),
    "reversed": (pack({"a": entry(offsets=(8, 0))}), "data_offsets"),
    "past the end": (pack({"a": entry(shape=(4,), offsets=(0, 16))}), "cut off"),
    "bytes behind": (pack({"a": entry()}, b"\0" * 12), "no tensor owns"),
    "wrong size": (pack({"a": entry(shape=(3,))}), "needs 12"),
    "size overflow": (pack({"a": entry(shape=(1 << 62, 4))}), "needs"),
    "negative size": (pack({"a": entry(shape=(-2,))}), "shape"),
    "float size": (pack({"a": entry(shape=(2.0,))}), "shape"),
    "boolean size": (pack({"a": entry(shape=(True, 2))}), "shape"),
    "ninth axis": (pack({"a": entry(shape=(1,) * 8 + (2,))}), "shape"),
    "huge integer": (pack({"a": entry(offsets=(0, 10**30))}), "spans"),
    "three offsets": (pack({"a": entry(offsets=(0, 4, 8))}), "data_offsets"),
    "offsets missing": (pack({"a": {"dtype": "F32", "shape": [2]}}), "exactly dtype"),
    "further key": (pack({"a": entry() | {"x": 1}}), "exactly dtype"),
    "unknown dtype": (pack({"a": entry(dtype="F8_E4M3")}), "allowed are F32"),
    "dtype not a string": (pack({"a": entry() | {"dtype": 1}}), "dtype"),
    "tensor not an object": (pack({"a": 1}), "exactly dtype"),
    "metadata not strings": (pack({"__metadata__": {"a": 1}, "a": entry()}), "__metadata__"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(ModelLoadError, match=message) as caught:
        open_safetensors(path)
    assert time.perf_counter() - start < 1
    assert "bad.safetensors" in str(caught.value)


@pytest.mark.slow
def test_many_names_are_read_in_time(tmp_path: Path) -> None:
    header = {f"tensor.{i}": entry(shape=(0,), offsets=(0, 0)) for i in range(50_000)}
    path = tmp_path / "many.safetensors"
    path.write_bytes(pack(header, b""))
    start = time.process_time()
    assert len(open_safetensors(path).entries) == 50_000
    assert time.process_time() - start < 5


@settings(max_examples=150, deadline=None)
@given(st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(["a", "b", "dtype", "shape", "data_offsets", "__metadata__"]),
                inner, max_size=4,
            ),
        ),
        max_leaves=12,
    ).map(lambda value: pack(value)),
))  # fmt: skip
def test_random_files_raise_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    path.write_bytes(content)
    try:
        entries = open_safetensors(path).entries
    except ModelLoadError:
        return
    assert sum(entry.end - entry.start for entry in entries.values()) < len(content)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_library_reads_what_we_write_and_we_read_it(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.randn(3, 5).to(dtype), "empty": torch.empty(0, 2, dtype=dtype),
               "scalar": torch.tensor(1.5, dtype=dtype)}  # fmt: skip
    shapes = [(name, tuple(tensor.shape), dtype) for name, tensor in tensors.items()]
    write_safetensors(tmp_path / "ours.safetensors", shapes, iter(tensors.values()))
    save_file(tensors, tmp_path / "theirs.safetensors")
    theirs = load_file(tmp_path / "ours.safetensors")
    ours = open_safetensors(tmp_path / "theirs.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(ours.read(name), tensor)


def test_a_tensor_that_is_not_as_announced_is_refused(tmp_path: Path) -> None:
    shapes = [("a", (2,), torch.float32)]
    with pytest.raises(ValueError, match=r"a: .* announced"):
        write_safetensors(tmp_path / "x", shapes, iter([torch.zeros(3)]))


def test_large_tensors_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "_PART", 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))
    path = tmp_path / "m.safetensors"
    wanted = torch.randn(37, 11)
    save_file({"first": torch.zeros(3), "wide": wanted}, path)
    file = open_safetensors(path)
    assert torch.equal(file.read("wide"), wanted)
    assert torch.equal(file.read("first"), torch.zeros(3))
    os.truncate(path, file.data_start + file.entries["wide"].start + 1000)
    with pytest.raises(ModelLoadError, match="tensor wide is cut off after 1000 of 1628 bytes"):
        file.read("wide")


def test_a_mapped_tensor_is_the_file_itself(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    codes, odd = torch.arange(4096, dtype=torch.int32), torch.arange(5, dtype=torch.uint8)
    shapes = [("codes", (64, 64), torch.int32), ("odd", (5,), torch.uint8),
              ("empty", (0, 3), torch.uint8), ("late", (64,), torch.uint8)]  # fmt: skip
    late = torch.full((64,), 9, dtype=torch.uint8)
    tensors = [codes.view(64, 64), odd, torch.empty(0, 3, dtype=torch.uint8), late]
    write_safetensors(path, shapes, iter(tensors))
    file = open_safetensors(path, state=True)
    mapped = {name: file.map(name) for name, _, _ in shapes}
    for (name, _, _), tensor in zip(shapes, tensors, strict=True):
        assert torch.equal(mapped[name], tensor)
    assert mapped["codes"].data_ptr() % safetensors.ALIGNMENT == 0
    # What another process writes is seen; what this one writes stays here.
    place = file.data_start + file.entries["codes"].start
    with path.open("r+b") as other:
        other.seek(place + 4 * 100)
        other.write((77).to_bytes(4, "little"))
    assert mapped["codes"][1, 36] == 77
    mapped["codes"][0, 0] = 5
    assert int.from_bytes(path.read_bytes()[place : place + 4], "little") == 0
    # "late" starts on no line, and was read.
    with path.open("r+b") as other:
        other.seek(file.data_start + file.entries["late"].start)
        other.write(b"\0" * 64)
    assert torch.equal(mapped["late"], late)
    # The mapping lives as long as its tensors; a path that is replaced leaves them as they are.
    del file
    path.unlink()
    assert mapped["codes"][1, 36] == 77


def test_a_file_that_became_shorter_is_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    write_safetensors(path, [("a", (64,), torch.float32)], iter([torch.zeros(64)]))
    file = open_safetensors(path)
    os.truncate(path, file.data_start + 100)
    with pytest.raises(ModelLoadError, match="has become shorter"):
        file.map("a")
    path.unlink()
    with pytest.raises(ModelLoadError, match="cannot be mapped"):
        file.map("a")
