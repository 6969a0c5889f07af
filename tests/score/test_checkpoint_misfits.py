"""What does not fit is refused before it is read, with every name a person needs."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from services.runtime.weights import BadCheckpoint
from services.score.checkpoint.loading import save
from services.score.checkpoint.opening import open_checkpoint
from services.score.checkpoint.tensors import read_file, read_folder
from tests.score.checkpoints import CPU, I2V, STEM, T2V, tensors, wan_json, write_wan


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return tensors(T2V)


def edited(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    described = json.loads((folder / "config.json").read_text())
    change(described)
    (folder / "config.json").write_text(json.dumps(described))


def test_missing_unexpected_and_misshapen_tensors_are_all_named(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    del weights["blocks.1.ffn.0.bias"]
    weights["blocks.0.self_attn.memory_proj_k.weight"] = torch.zeros(5)
    weights["head.head.weight"] = torch.zeros(64, 9)
    with pytest.raises(BadCheckpoint) as caught:
        open_checkpoint(write_wan(tmp_path, T2V, weights))
    assert caught.value.missing == ["blocks.1.ffn.0.bias"]
    assert caught.value.unexpected == ["blocks.0.self_attn.memory_proj_k.weight"]
    assert [str(item) for item in caught.value.misshapen] == [
        "head.head.weight: got [64, 9], expected [64, 256]"
    ]


def test_a_config_that_promises_more_layers_finds_them_missing(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    write_wan(tmp_path, T2V, weights)
    edited(tmp_path, lambda described: described.update(num_layers=4))
    with pytest.raises(BadCheckpoint) as caught:
        open_checkpoint(tmp_path)
    assert len(caught.value.missing) == sum(name.startswith("blocks.0.") for name in weights)
    assert all(name.startswith("blocks.3.") for name in caught.value.missing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "ti2v"}, "model_type is 'ti2v'"),
        ({"_class_name": "HunyuanVideo"}, "describes a HunyuanVideo"),
        ({"dim": None}, "lacks the number of dim"),
        ({"num_heads": 7}, "config.heads: expected a divisor of dim 256"),
        ({"in_dim": 20}, "20 input channels for 16"),
        ({"eps": "tiny"}, "config.json has eps 'tiny'"),
        ({"eps": float("nan")}, "config.eps: expected a number from"),
        ({"num_layers": 10**9}, "config.layers: expected a number from 1 to 512"),
        ({"text_len": -1}, "config.text.tokens: expected a number from 1"),
    ],
)
def test_configs_that_describe_something_else(
    tmp_path: Path, weights: dict[str, Tensor], change: dict[str, object], message: str
) -> None:
    write_wan(tmp_path, T2V, weights)
    edited(tmp_path, lambda described: described.update(change))
    with pytest.raises(BadCheckpoint, match=message):
        open_checkpoint(tmp_path)


def test_an_own_config_with_an_unknown_field(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    save(tmp_path, T2V, weights.items())
    edited(tmp_path, lambda described: described.update(depth=3))
    with pytest.raises(BadCheckpoint, match=r"config\.depth"):
        open_checkpoint(tmp_path)


def test_paths_that_hold_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="there is no such file or folder"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(BadCheckpoint, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(wan_json(T2V)))
    with pytest.raises(BadCheckpoint, match=rf"no {STEM} or model\.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(BadCheckpoint, match="expected a JSON object"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BadCheckpoint, match=r"expected \.safetensors or one of"):
        open_checkpoint(tmp_path / "notes.txt")


def test_shards_that_are_absent_or_lack_tensors(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    write_wan(tmp_path, T2V, weights, shards=3)
    first, second, _ = sorted(tmp_path.glob("*.safetensors"))
    kept = read_file(first)
    lost = min(kept)
    save_file({name: stored.read(CPU) for name, stored in kept.items() if name != lost}, first)
    with pytest.raises(BadCheckpoint, match="shards lack what the index names") as caught:
        open_checkpoint(tmp_path)
    assert caught.value.missing == [lost]
    second.unlink()
    with pytest.raises(BadCheckpoint, match=f"absent beside it: {second.name}"):
        open_checkpoint(tmp_path)
    (tmp_path / f"{STEM}.safetensors.index.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match="expected a weight_map"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 1000])
@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt"])
def test_cut_files(tmp_path: Path, weights: dict[str, Tensor], name: str, kept: int) -> None:
    whole = tmp_path / name
    if name.endswith(".pt"):
        torch.save({"generator": weights}, whole)
    else:
        save_file(weights, whole)
    whole.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(BadCheckpoint, match="not a readable"):
        open_checkpoint(whole)


@pytest.mark.parametrize("modern", [True, False])
def test_a_pickle_with_code_is_refused_unrun(tmp_path: Path, modern: bool) -> None:
    target = tmp_path / "touched"

    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (target,))

    file = tmp_path / "evil.pt"
    if modern:
        torch.save({"generator": {"model.x": Touch()}}, file)
    else:
        file.write_bytes(pickle.dumps({"generator": Touch()}, protocol=2))
    with pytest.raises(BadCheckpoint, match="not a readable file of tensors and plain data"):
        open_checkpoint(file)
    assert not target.exists()


def test_a_compressed_pickle_is_read_as_what_it_holds(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"generator": {"x": torch.arange(1000.0)}}, plain)
    with ZipFile(plain) as old, ZipFile(packed, "w", ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    assert read_file(packed)["generator.x"].read(CPU).equal(torch.arange(1000.0))


def test_dicts_that_unfold_without_end_are_refused(tmp_path: Path) -> None:
    tree: dict[str, object] = {"x": torch.zeros(1)}
    for _ in range(40):
        tree = {"a": tree, "b": tree}
    torch.save(tree, tmp_path / "bomb.pt")
    with pytest.raises(BadCheckpoint, match="more than once"):
        read_file(tmp_path / "bomb.pt")


@pytest.mark.parametrize("file", ["../outside.safetensors", 3, None, ["x"], "y" * 5000])
def test_an_index_names_files_beside_it(tmp_path: Path, file: object) -> None:
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": file}})
    )
    with pytest.raises(BadCheckpoint):
        read_folder(tmp_path, STEM)


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(BadCheckpoint, match="expected a dict of tensors, got list"):
        open_checkpoint(tmp_path / "list.pt")
    torch.save({"generator": {"model.x": torch.zeros(3)}}, tmp_path / "other.pt")
    with pytest.raises(BadCheckpoint, match=r"not a Wan2\.1-shaped transformer"):
        open_checkpoint(tmp_path / "other.pt")


def test_audio_weights_that_are_none_or_of_another_size(tmp_path: Path) -> None:
    base = write_wan(tmp_path / "base", I2V, tensors(I2V))
    save_file({"something.weight": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(BadCheckpoint, match="no audio weights of a known layout"):
        open_checkpoint(base, audio=tmp_path / "a.safetensors")
    fantasy = {
        "proj_model.proj.weight": torch.zeros(20, 10),
        "proj_model.norm.weight": torch.zeros(20),
        "proj_model.norm.bias": torch.zeros(20),
        "audio_processor.blocks.0.cross_attn.processor.k_proj.weight": torch.zeros(64, 20),
    }
    save_file(fantasy, tmp_path / "b.safetensors")
    with pytest.raises(BadCheckpoint) as caught:
        open_checkpoint(base, audio=tmp_path / "b.safetensors")
    assert "blocks.1.cross_attn.processor.v_proj.weight" in caught.value.missing
    assert len(caught.value.missing) == 3
    assert len(caught.value.misshapen) == 1
    odd = {
        "audio_proj.proj1.weight": torch.zeros(12, 50),
        "audio_proj.proj1_vf.weight": torch.zeros(12, 81),
        "audio_proj.proj3.weight": torch.zeros(48, 12),
        "audio_proj.norm.weight": torch.zeros(16),
    }
    save_file(odd, tmp_path / "c.safetensors")
    with pytest.raises(BadCheckpoint, match="audio_proj reads 50 and 81 numbers"):
        open_checkpoint(base, audio=tmp_path / "c.safetensors")
    for width in (0, 1 << 18):
        fantasy["proj_model.proj.weight"] = torch.zeros(width, 10)
        save_file(fantasy, tmp_path / "d.safetensors")
        with pytest.raises(BadCheckpoint, match=r"audio\.adapter\.width: expected a number from 1"):
            open_checkpoint(base, audio=tmp_path / "d.safetensors")
    odd["audio_proj.norm.weight"] = torch.zeros(0)
    save_file(odd, tmp_path / "e.safetensors")
    with pytest.raises(BadCheckpoint, match="audio_proj reads"):
        open_checkpoint(base, audio=tmp_path / "e.safetensors")


@pytest.mark.parametrize("wrapped", ["model.", "module.model."])
def test_two_tensors_of_one_name_are_refused(
    tmp_path: Path, weights: dict[str, Tensor], wrapped: str
) -> None:
    weights[f"{wrapped}head.head.bias"] = torch.zeros(64)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(BadCheckpoint, match=r"head\.head\.bias is there more than once"):
        open_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize("number", ["1000000", "9" * 5000])
def test_a_block_of_an_absurd_number_is_not_counted(
    tmp_path: Path, weights: dict[str, Tensor], number: str
) -> None:
    torch.save(weights | {f"blocks.{number}.ffn.0.bias": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(BadCheckpoint, match=rf"unexpected \(blocks\.{number[:9]}"):
        open_checkpoint(tmp_path / "w.pt")
    torch.save(weights | {"blocks.999999.ffn.0.bias": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(BadCheckpoint, match=r"config\.layers: expected a number from 1 to 512"):
        open_checkpoint(tmp_path / "w.pt")
