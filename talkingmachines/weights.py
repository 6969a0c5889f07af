"""Public weights that our fleet runs, or that belong to those: what they are and may be used for.

Read by the command line (`talkingmachines models list`) and by the services, which know how to open
them. What is said of a licence says where that was found, in November 2026: read the publisher's
own before you rely on it. Hashes are those that the hub states for the files; where none is here,
none was at hand.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KnownFile:
    """One published file."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class KnownWeights:
    """A published repository of weights."""

    name: str  # ours; where it is a recipe's, `TM_SCORE_RECIPE` takes it
    repository: str  # on huggingface.co
    gives: str
    weights_licence: str
    code_licence: str
    licence_found: str  # where, or that it was not
    gigabytes: float  # about, of the files that are needed
    runs: str  # which of our features it has
    live: bool  # whether it was distilled for streaming
    needs: tuple[str, ...] = ()  # other entries, by name


VAE = KnownFile(
    "Wan2.1_VAE.pth",
    507_609_880,
    "38071ab59bd94681c686fa51d75a1968f64e470262043be31f7a094e442fd981",
)
TEXT_ENCODER = KnownFile(
    "models_t5_umt5-xxl-enc-bf16.pth",
    11_361_920_418,
    "7cace0da2b446bbbbc57d031ab6cf163a3d59b366da94e5afe36745b746fd81d",
)
PICTURE_ENCODER = KnownFile(
    "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    4_772_359_047,
    "628c9998b613391f193eb67ff68da9667d75f492911e4eb3decf23460a158c38",
)
FILES = (VAE, TEXT_ENCODER, PICTURE_ENCODER)

_APACHE = "Apache-2.0"
_UNKNOWN = "not found: ask its publisher before use"
_OWN = "in the publisher's own text"
_SECOND_HAND = "in what others quote of the hub's page; the publisher's own text was not at hand"

CATALOGUE = (
    KnownWeights(
        "wan2.2-s2v",
        "Wan-AI/Wan2.2-S2V-14B",
        "speech to video, 14B; the base of RealVideo and LiveAvatar; VAE, text encoder, wav2vec",
        _APACHE,
        _APACHE,
        _OWN,
        49.0,
        "speech, prompts, several speakers; not distilled: draws, far from live",
        live=False,
    ),
    KnownWeights(
        "realvideo",
        "zai-org/RealVideo",
        "Wan2.2-S2V-14B as a sparse-causal student, 2 or 4 steps, chunks of 0.5 s",
        _UNKNOWN,
        "not found; parts are of Self-Forcing when that was CC BY-NC-SA 4.0 (not commercial)",
        "its README says none; its base is Apache-2.0",
        32.6,
        "speech, prompts, listening, hand-over (4 chunks replayed), sequence parallelism",
        live=True,
        needs=("wan2.2-s2v",),
    ),
    KnownWeights(
        "liveavatar",
        "Quark-Vision/Live-Avatar",
        "adapters for Wan2.2-S2V-14B, 4 steps, chunks of 0.75 s",
        _APACHE,
        _APACHE,
        f"{_OWN}, for most of the project, which calls itself a research preview",
        1.5,
        "as RealVideo; keeps four sets of keys and values, so few sessions fit",
        live=True,
        needs=("wan2.2-s2v",),
    ),
    KnownWeights(
        "wan2.1-i2v",
        "Wan-AI/Wan2.1-I2V-14B-480P",
        "image to video, 14B; the base of MultiTalk, InfiniteTalk and of the paper",
        _APACHE,
        _APACHE,
        _OWN,
        82.3,
        "prompts; hears nothing by itself",
        live=False,
    ),
    KnownWeights(
        "wan2.1-i2v-720p",
        "Wan-AI/Wan2.1-I2V-14B-720P",
        "the same for larger pictures; the base of FantasyTalking",
        _APACHE,
        _APACHE,
        _OWN,
        82.3,
        "prompts; hears nothing by itself",
        live=False,
    ),
    KnownWeights(
        "multitalk",
        "MeiGen-AI/MeiGen-MultiTalk",
        "audio weights for Wan2.1-I2V-14B",
        _APACHE,
        _APACHE,
        f"{_OWN}, for the models; for the code {_SECOND_HAND}",
        5.0,
        "speech, several speakers; not distilled",
        live=False,
        needs=("wan2.1-i2v",),
    ),
    KnownWeights(
        "infinitetalk",
        "MeiGen-AI/InfiniteTalk",
        "audio weights for Wan2.1-I2V-14B",
        _APACHE,
        _APACHE,
        _SECOND_HAND,
        5.0,
        "speech, several speakers; not distilled",
        live=False,
        needs=("wan2.1-i2v",),
    ),
    KnownWeights(
        "fantasytalking",
        "acvlab/FantasyTalking",
        "audio weights for Wan2.1-I2V-14B-720P",
        _APACHE,
        _APACHE,
        _SECOND_HAND,
        1.7,
        "speech; not distilled",
        live=False,
        needs=("wan2.1-i2v-720p",),
    ),
    KnownWeights(
        "self-forcing",
        "gdhe17/Self-Forcing",
        "text to video, 1.3B, 4 steps",
        _UNKNOWN,
        "Apache-2.0 since autumn 2025, CC BY-NC-SA 4.0 (not commercial) before",
        "github.com/NVlabs/LongLive/issues/10; the publisher's own text was not at hand",
        5.7,
        "prompts; hears nothing: the head does not talk",
        live=True,
    ),
)


def known(name: str) -> KnownWeights | None:
    """The entry of that name."""
    return next((one for one in CATALOGUE if one.name == name), None)
