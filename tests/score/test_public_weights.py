"""A public student from its files to latents over gRPC, and what the command line says of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from services.score import models
from services.score.checkpoint.loading import load
from services.score.checkpoint.opening import open_checkpoint
from services.score.config import DitConfig
from services.score.settings import EncoderFiles
from talkingmachines.cli import models as models_command
from talkingmachines.errors import BadInput
from talkingmachines.media import Tensor
from talkingmachines.picture import PixelFormat, RawPicture
from talkingmachines.v1 import score_pb2
from tests.score import encoders, s2v, served
from tests.score.calls import Call
from tests.score.checkpoints import CPU
from tests.score.frontends import network
from tests.score.served import Caller, serving, tail_to_proto


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of Wan2.2-S2V, small, with RealVideo's file beside it."""
    path = tmp_path_factory.mktemp("public")
    weights = s2v.tensors()
    s2v.write_wan22(encoders.write(path), weights)
    s2v.write_realvideo(path / "model.pt", weights)
    network(stable=True).save_pretrained(path / "wav2vec2-large-xlsr-53-english")
    return path


def picture(shade: int) -> RawPicture:
    return RawPicture(PixelFormat.RGB24, 64, 64, bytes([shade]) * (64 * 64 * 3))


async def conditioned(stub: object, config: DitConfig, **prompts: str) -> score_pb2.Conditioning:
    request = score_pb2.ConditionRequest(image=picture(90).to_proto(), **prompts)
    made = (await stub.Condition(request)).conditioning  # type: ignore[attr-defined]
    anchor = torch.randn(16, 1, *config.latent_size, generator=torch.Generator().manual_seed(1))
    made.anchor.CopyFrom(Tensor.from_array(anchor.numpy()).to_proto())
    made.digest = f"{prompts}"
    made.faces.add(x=0.1, y=0.1, width=0.8, height=0.8)
    assert isinstance(made, score_pb2.Conditioning)
    return made


async def test_realvideo_from_its_file_to_a_session_that_moves(folder: Path) -> None:
    config = s2v.config("realvideo")
    chosen = served.settings(
        folder / "model.pt",
        wav2vec=folder / "wav2vec2-large-xlsr-53-english",
        size="64x64",
        encoders=EncoderFiles(dtype="float32"),
    )
    async with serving(chosen) as there:
        described = await there.describe()
        assert described.takes_prompt
        assert described.tail.latent_chunks == 4
        said = {"prompt": "a woman talks", "listening_prompt": "she listens"}
        who = await conditioned(there.stub, config, **said)
        assert list(who.text.shape) == [4, encoders.TEXT]
        assert list(who.listening_text.shape) == [3, encoders.TEXT]
        nobody = await conditioned(there.stub, config)
        assert list(nobody.text.shape) == [6, encoders.TEXT], "the default: A character is talking."
        assert nobody.HasField("listening_text")
        alone = await conditioned(there.stub, config, prompt="a woman talks")
        assert not alone.HasField("listening_text"), "the same as while it speaks"
        call = Call(config)
        stays = await Caller(there.stub, call, described.checkpoint).attach(conditioning=who)
        await stays.draw(5)
        tail = tail_to_proto(stays.tail(), config)
        moved = Caller(there.stub, Call(config, log=list(call.log)), described.checkpoint)
        await moved.attach(conditioning=who, tail=tail)
        expected, got = (await stays.draw())[0], (await moved.draw())[0]
        assert float((got - expected).std() / expected.std()) < 2e-2
        wrong = picture(9).to_proto()
        wrong.pixel_format = PixelFormat.I420.value
        wrong.pixels = wrong.pixels[: 64 * 64 * 3 // 2]
        with pytest.raises(BadInput, match="RGB24"):
            await there.stub.Condition(score_pb2.ConditionRequest(image=wrong))


def test_what_is_wrong_with_a_download_is_said_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "Wan2.1_VAE.pth").write_bytes(b"cut")
    s2v.write_realvideo(tmp_path / "model.pt", s2v.tensors())
    assert models.main(["verify", str(tmp_path / "model.pt")]) == 1
    told = capsys.readouterr().out
    assert "3 bytes instead of 507,609,880: a download that was cut off; fetch it anew" in told
    absent = "fetch google/umt5-xxl/tokenizer.json, models_t5_umt5-xxl-enc-bf16.pth (11.4 GB) from"
    assert absent in told
    assert "no wav2vec 2.0 folder beside it (wav2vec2-large-xlsr-53-english" in told
    assert "ok      " in told, "the transformer itself is whole"
    assert "RealVideo pickle" in told
    models.main(["verify", "--no-hashes", str(folder)])
    whole = capsys.readouterr().out
    assert "Wan2.2-S2V layout" in whole
    assert "encoders of prompts and pictures: beside it" in whole
    assert "wav2vec 2.0: wav2vec2-large-xlsr-53-english" in whole
    assert models.main(["verify", str(tmp_path / "nothing")]) == 1
    assert "there is no such file or folder" in capsys.readouterr().out


SHARD = "diffusion_pytorch_model-00002-of-00003.safetensors"
WAV2VEC = "wav2vec2-large-xlsr-53-english"


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "spoil", "text"),
    [
        (SHARD, Path.unlink, f"absent beside it: {SHARD}"),
        (SHARD, _cut, "bytes: a download that was cut off; fetch it anew"),
        (SHARD, lambda file: file.write_text("version https://git-lfs.github.com"), "git lfs pull"),
        (SHARD, lambda file: file.write_bytes(b"\1" * 99), "not a safetensors file"),
        (SHARD, lambda file: file.write_text(""), f"{SHARD}: empty; fetch it anew"),
        ("model.pt", _cut, "model.pt: "),
        ("model.pt", lambda file: file.write_text("<html>no</html>"), "a web page, not weights"),
        ("config.json", Path.unlink, "no config.json"),
        (
            "config.json",
            lambda file: file.write_text("{"),
            "config.json does not fit: not readable",
        ),
        (
            "diffusion_pytorch_model.safetensors.index.json",
            Path.unlink,
            "3 shards are here, so fetch diffusion_pytorch_model.safetensors.index.json",
        ),
        ("google/umt5-xxl/tokenizer.json", Path.unlink, "fetch google/umt5-xxl/tokenizer.json"),
        (f"{WAV2VEC}/config.json", Path.unlink, f"{WAV2VEC} has no config.json; fetch it"),
        (f"{WAV2VEC}/model.safetensors", Path.unlink, "has no model.safetensors or pytorch_model"),
        (f"{WAV2VEC}/model.safetensors", _cut, "model.safetensors: "),
    ],
)
def test_what_was_done_to_a_file_is_said_with_what_to_do(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    spoil: Callable[[Path], object],
    text: str,
) -> None:
    spoiled = tmp_path / "spoiled"
    shutil.copytree(folder, spoiled)
    spoil(spoiled / name)
    assert models.main(["verify", "--no-hashes", str(spoiled)]) == 1
    told = [line for line in capsys.readouterr().out.splitlines() if "instead of" not in line]
    (said,) = [line for line in told if text in line]
    assert said.startswith("WRONG")
    others = [line for line in told if line.startswith("WRONG") and line is not said]
    assert not [line for line in others if "Wan2.1_VAE.pth" not in line], "nothing is told twice"


def test_additions_and_other_parts_are_known_for_what_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters, _ = s2v.write_live_avatar(tmp_path / "liveavatar.safetensors")
    assert models.main(["verify", str(adapters)]) == 0
    assert "needs     the transformer it was trained on: --lora" in capsys.readouterr().out
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"encoder": {}, "decoder": {}}')
    assert models.main(["verify", str(tmp_path / "vae")]) == 1
    assert "a video VAE: it is for TM_VAE_MODEL" in capsys.readouterr().out
    (tmp_path / "nothing").mkdir()
    assert models.main(["verify", str(tmp_path / "nothing")]) == 1
    assert "the folder is empty: `talkingmachines models list`" in capsys.readouterr().out


def test_a_plan_says_what_a_gpu_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["plan", "realvideo", "--gpu", "h200", "--size", "480x640"]) == 0
    told = capsys.readouterr().out
    assert "weights           32.59 GB" in told
    assert "chunks of 500 ms, 2 steps" in told
    assert "ranks           1, 2, 4, 5, 8, 10 devices" in told
    # The published 442.6 ms are 63 % of the floor that model-independent arithmetic gives.
    floor = int(told.split("a chunk takes")[1].split("ms")[0])
    assert 250 < floor < 310
    assert models.main(["plan", "tm-18b", "--gpu", "l40s"]) == 0
    assert "time for        0 live sessions" in capsys.readouterr().out
    for name, why in (("multitalk", "give its files"), ("nobody", "there is no such file")):
        assert models.main(["plan", name]) == 1
        told = capsys.readouterr().err
        assert why in told
        assert "names that need no files: tm-18b" in told


@pytest.mark.parametrize("kept", ["bf16", "fp8"])
def test_converted_weights_are_ours_and_the_same_but_for_rounding(
    folder: Path, tmp_path: Path, kept: str
) -> None:
    out = tmp_path / "out"
    told = ["convert", str(folder / "model.pt"), str(out), "--dtype", kept, "--size", "64x64"]
    assert models.main(told) == 0
    opened = open_checkpoint(out)
    assert opened.config == s2v.config("realvideo")
    got = load(opened, device=CPU, dtype=torch.float32).state_dict()
    for name, tensor in s2v.tensors().items():
        ours = got[name.replace("casual_audio_encoder.", "audio_proj.")]
        error = (ours - tensor).norm() / tensor.norm()
        assert error < {"bf16": 0.003, "fp8": 0.04}[kept], name
    with safe_open(out / "model.safetensors", framework="pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert ("F8_E4M3" in kinds) is (kept == "fp8")
    assert models.main(told) == 1, "nothing is overwritten"


def test_known_weights_are_listed_with_their_licences(capsys: pytest.CaptureFixture[str]) -> None:
    models_command.list_(as_json=True)
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert {"wan2.2-s2v", "realvideo", "liveavatar", "self-forcing"} <= listed.keys()
    assert "not commercial" in listed["self-forcing"]["code_licence"]
    assert all(one["licence_found"] for one in listed.values())
    assert all(needed in listed for one in listed.values() for needed in one["needs"])
    models_command.list_(as_json=False)
    told = capsys.readouterr().out
    assert all(f"{name}: {one['repository']}, " in told for name, one in listed.items())
    assert max(map(len, told.splitlines())) <= 90
    assert models_command.run("plan", ["realvideo", "--gpu", "nothing"]) == 2
