"""Audio weights that are published apart from the transformer they belong to.

Beside `layouts.py`. What a file is follows from the names in it; what it needs to hear follows from
its shapes and from how its authors fed it.

- MultiTalk and InfiniteTalk (github.com/MeiGen-AI/MultiTalk): safetensors; names as in the model.
- FantasyTalking (github.com/Fantasy-AMAP/fantasy-talking): `.ckpt` with two dicts, `proj_model` and
  `audio_processor`, or safetensors with these as prefixes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.runtime.strict_json import Misfit
from services.runtime.weights import BadCheckpoint, Shape
from services.score.checkpoint.layouts import unwrapped
from services.score.checkpoint.tensors import Weights
from services.score.config import AudioConfig, DitConfig, FantasyTalkingAudio, MultiTalkAudio
from services.score.frontend.config import Wav2Vec2FrontEnd

_FANTASY = {"proj_model.": "audio_proj.", "audio_processor.": ""}
_PER_LATENT = 4  # MultiTalk: video frames in a latent frame, one embedding each


@dataclass(frozen=True, slots=True)
class AudioWeights:
    """Audio weights by our names, and the part of a configuration that they decide."""

    source: str
    title: str
    weights: Weights
    audio: AudioConfig
    fps: int
    sample_rate: int  # Hz

    def given_to(self, config: DitConfig) -> DitConfig:
        """The configuration of a transformer that hears through these weights.

        Raises:
            BadCheckpoint: their shapes are of no size that could be built.
        """
        stream = replace(config.stream, fps=self.fps, sample_rate=self.sample_rate)
        try:
            return replace(config, audio=self.audio, stream=stream)
        except Misfit as error:
            raise BadCheckpoint(self.source, why=str(error)) from error


def audio_weights(source: str, weights: Weights) -> AudioWeights | None:
    """The audio weights among `weights`; None where there are none that are known.

    Raises:
        BadCheckpoint: shapes that contradict each other.
    """
    names = unwrapped(source, weights)
    if any(name.startswith(prefix) for prefix in _FANTASY for name in names):
        return _fantasytalking(source, _renamed(names))
    if "audio_proj.proj1_vf.weight" in names:
        return _multitalk(source, names)
    return None


def _fantasytalking(source: str, weights: Weights) -> AudioWeights:
    width, embedding = _matrix(source, weights, "audio_proj.proj.weight")
    audio = AudioConfig(
        adapter=FantasyTalkingAudio(width=width),
        front_end=Wav2Vec2FrontEnd(states="last"),
        embedding_dim=embedding,
        per_latent=8,
        before=4,
        after=5,
    )
    # Trained at 23 frames per second and 50 embeddings: 8.7 per latent, 17 with 4 more on either
    # side. 24 and 48 are the nearest with whole samples; the attention does not count its keys.
    return AudioWeights(source, "FantasyTalking", weights, audio, fps=24, sample_rate=24_000)


def _multitalk(source: str, weights: Weights) -> AudioWeights:
    hidden, window = _matrix(source, weights, "audio_proj.proj1_vf.weight")
    _, first = _matrix(source, weights, "audio_proj.proj1.weight")
    flat, _ = _matrix(source, weights, "audio_proj.proj3.weight")
    (width,) = _shape(source, weights, "audio_proj.norm.weight", 1)
    embedding, odd = divmod(window - first, _PER_LATENT - 1)
    if embedding <= 0 or width <= 0 or odd or window % embedding or flat % width:
        why = f"audio_proj reads {first} and {window} numbers and gives {flat} in {width}s"
        raise BadCheckpoint(source, why=why)
    around = window // embedding - _PER_LATENT
    audio = AudioConfig(
        adapter=MultiTalkAudio(hidden=hidden, tokens=flat // width, width=width),
        front_end=Wav2Vec2FrontEnd(states="transformer", every=2),
        embedding_dim=embedding,
        per_latent=_PER_LATENT,
        before=around // 2,
        after=around - around // 2,
    )
    return AudioWeights(
        source, "MultiTalk or InfiniteTalk", weights, audio, fps=25, sample_rate=16_000
    )


def _renamed(weights: Weights) -> Weights:
    return {_ours(name): stored for name, stored in weights.items()}


def _ours(name: str) -> str:
    for theirs, ours in _FANTASY.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def _matrix(source: str, weights: Weights, name: str) -> tuple[int, int]:
    rows, columns = _shape(source, weights, name, 2)
    return rows, columns


def _shape(source: str, weights: Weights, name: str, rank: int) -> Shape:
    if name not in weights or len(weights[name].shape) != rank:
        raise BadCheckpoint(source, missing=[name])
    return weights[name].shape
