"""Grade models: one table, one sheet of pictures, one command.

    python -m training.evaluate --model NAME=DIR --vae DIR --speech DIR --judge FILE
        --out DIR [--steps 1 2 4] [--teacher DIR] [--minutes 10] [--films DIR]

Unseen characters say unseen lines in unseen voices. Mouths are read out of the pictures by a judge
that learned from renderer frames alone and that no model was trained with; `mediapipe_judge.sh`
asks a second one, which knows nothing of our renderers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from services.score.checkpoint.loading import load, load_front_end
from services.score.checkpoint.opening import open_checkpoint
from services.score.config import ScheduleConfig
from services.vae import checkpoint
from services.vae.model import Vae
from services.vae.state import State
from training.data.faces.family import Family
from training.data.faces.truth import mouth_weights
from training.data.speech.corpus import Corpus
from training.data.speech.crops import CropPlan, SpeechSet
from training.data.speech.split import Test
from training.distil import Origin
from training.exam import Candidate, Question, answer, ask
from training.flow import Flow
from training.footage import Geometry
from training.grades import Grades, reaction, sync, table
from training.measure import psnr, ssim
from training.mouth_reader import PixelReader, lips_apart, mouth_crop
from training.sheet import grid, write_png
from training.shipped import SIDE
from training.speaker import CorpusSpeaker
from training.stream import Mp4
from training.vae import autocast, signed

_SHOWN = 10  # frames per row of the sheet
_LOOKED_AT = 10  # one of so many chunks of a long stream


@dataclass(slots=True)
class Watched:
    """What was seen of an answer, frame by frame."""

    controls: Tensor  # [B, T, 6] as the judge reads them
    moved: Tensor  # [B, T]: mean change of the mouth's pixels since the frame before, 0..255
    kept: list[float]  # per chunk: PSNR of the background against the reference picture
    shift: list[float]  # per chunk: mean change of colour against it, -1..1
    seconds: float  # per chunk
    frames: dict[int, Tensor] = field(default_factory=dict)  # those of the sheet, uint8


@torch.no_grad()
def watch(
    candidate: Candidate,
    question: Question,
    judge: PixelReader,
    show: Sequence[int] = (),
    *,
    every: int = 1,
) -> Watched:
    """Let a candidate answer and look at it, or at one of so many chunks."""
    boxes = question.truth.mouth_box[:, 0]
    anchor = question.anchor.float() / 127.5 - 1
    mask = _background(question)
    reads, moves, kept, shift, frames = [], [], [], [], dict[int, Tensor]()
    last, began, first = None, time.monotonic(), 0
    for chunk in answer(candidate, question, every=every):
        pictures = chunk.clamp(-1, 1).cpu()
        each = pictures.shape[1]
        crops = mouth_crop(pictures.flatten(0, 1), boxes.repeat_interleave(each, 0))
        reads.append(judge(crops).view(len(chunk), each, -1))
        crops = crops.view(len(chunk), each, *crops.shape[1:])
        before = crops[:, :1] if last is None else last
        moves.append(torch.cat([before, crops], 1).diff(dim=1).abs().mean((2, 3, 4)) * 127.5)
        last = crops[:, -1:]
        kept.append(psnr(pictures, anchor[:, None].expand_as(pictures), mask=mask))
        shift.append(float((pictures - anchor[:, None]).mean((0, 1, 3, 4)).abs().mean()))
        frames |= {n: pictures[:, n - first] for n in show if first <= n < first + each}
        first += each
    seconds = (time.monotonic() - began) / max(1, len(reads))
    return Watched(torch.cat(reads, 1), torch.cat(moves, 1), kept, shift, seconds, frames)


def graded(
    candidate: Candidate, questions: Mapping[str, Question], judge: PixelReader, show: Sequence[int]
) -> tuple[Grades, Watched]:
    seen = watch(candidate, questions["speech"], judge, show)
    still = watch(candidate, questions["silence"], judge)
    turn = watch(candidate, questions["turn"], judge)
    long = seen
    if "long" in questions:
        long = watch(candidate, questions["long"], judge, every=_LOOKED_AT)
    tenth = max(1, len(long.kept) // 10)
    return Grades(
        model=candidate.name,
        sync=sync(seen.controls, questions["speech"].controls),
        stillness=float(still.moved.mean() / seen.moved.mean()),
        reaction_frames=reaction(turn.controls, questions["turn"].controls),
        kept_first=sum(long.kept[:tenth]) / tenth,
        kept_last=sum(long.kept[-tenth:]) / tenth,
        shift_last=sum(long.shift[-tenth:]) / tenth / 2,
        chunk_seconds=seen.seconds / len(seen.controls),
    ), seen


def questions(
    speech: SpeechSet[Test], family: Family, *, characters: int, seconds: float, minutes: float
) -> dict[str, Question]:
    """Speech, silence, a turn that begins after a second of listening, and a long stream."""
    plain, quiet = CropPlan(silence=0.0, stretched=0.0), CropPlan(silence=1.0, stretched=0.0)
    length = _length(seconds)
    short = _length(5.0)
    asked = {
        "speech": ask(CorpusSpeaker(speech, length, plain, turns=0), length, characters, family),
        "silence": ask(CorpusSpeaker(speech, short, quiet, turns=0), short, characters, family),
        "turn": ask(CorpusSpeaker(speech, short, plain, turns=1), short, characters, family),
    }
    if minutes:
        endless = _length(60 * minutes)
        few = min(2, characters)
        asked["long"] = ask(CorpusSpeaker(speech, endless, plain, turns=0), endless, few, family)
    return asked


@dataclass(frozen=True, slots=True)
class Kept:
    """What is left of rendered speech after the VAE: the ceiling of every model above it."""

    psnr: float  # dB
    mouth_psnr: float  # dB, in the box of the mouth
    ssim: float

    def __str__(self) -> str:
        return (
            f"VAE on rendered speech: {self.psnr:.1f} dB, mouth {self.mouth_psnr:.1f} dB, "
            f"SSIM {self.ssim:.3f}"
        )


@torch.no_grad()
def kept(vae: Vae, question: Question, *, frames: int = 48) -> Kept:
    """The renderer's own answer, encoded and decoded as a stream is."""
    true, made = [], []
    for number, rows in enumerate(question.shown(torch.arange(frames))):
        clip = signed(torch.cat([question.anchor[number, None], rows])[None])
        with autocast(clip.device):
            latents, _ = vae.encode(clip, State())
            drawn, _ = vae.decode(latents.float(), State())
        true.append(clip[0, :, 1:].transpose(0, 1))
        made.append(drawn[0, :, 1:].float().clamp(-1, 1).transpose(0, 1))
    weight = mouth_weights(question.truth, question.anchor.shape[-1], 2.0)[:, 0]
    mouth = (weight > 1.99).float().repeat_interleave(frames, 0)[:, None]
    flat = torch.cat(made), torch.cat(true)
    return Kept(psnr(*flat), psnr(*flat, mask=mouth), ssim(*flat))


def sheet(question: Question, answers: Sequence[Watched], show: Sequence[int]) -> Tensor:
    """Per character: the renderer's frames, then every model's: uint8 [3, ...]."""
    true = question.shown(torch.tensor(show)).float() / 127.5 - 1
    rows = []
    for character in range(min(4, len(true))):
        drawn = [torch.stack([a.frames[frame][character] for frame in show]) for a in answers]
        rows += [true[character], *drawn]
    return grid(rows)


def moments(question: Question) -> list[int]:
    """Frames worth showing: widest and closest in turn, evenly spread over the answer."""
    apart = lips_apart(question.controls[0])
    step = len(apart) // _SHOWN
    parts = [apart[n * step : (n + 1) * step] for n in range(_SHOWN)]
    return [
        n * step + int(part.argmin() if n % 4 == 3 else part.argmax())
        for n, part in enumerate(parts)
    ]


def _background(question: Question) -> Tensor:
    """1 outside of every face: [B, 1, 1, H, W]."""
    size = question.anchor.shape[-1]
    place = (torch.arange(size) + 0.5) / size
    left, top, right, bottom = question.truth.face_box[:, :, None].unbind(1)
    across, down = (place >= left) & (place < right), (place >= top) & (place < bottom)
    face = down[:, :, None] & across[:, None, :]
    # Below a face are shoulders, which breathe.
    above = (place[None, :] < bottom)[:, :, None]
    return (~face & above).float()[:, None, None]


def _length(seconds: float) -> Geometry:
    return Geometry(frames=max(1, round(seconds * 25 / 48)) * 48, size=SIDE)


def candidates(asked: argparse.Namespace) -> list[Candidate]:
    vae = checkpoint.load(asked.vae).float()
    device = torch.device("cpu")
    made = []
    for name, folder in asked.model:
        opened = open_checkpoint(folder)
        dit = load(opened, device=device, dtype=torch.float32)
        plain = Candidate(
            name, Flow(dit, "causal"), load_front_end(opened, device=device), vae, device
        )
        made.append(plain)
        for steps in asked.steps:
            even = tuple(1 - step / steps for step in range(steps))
            schedule = ScheduleConfig(even, opened.config.schedule.shift)
            made.append(replace(plain, name=f"{name}, {steps} steps", schedule=schedule))
    if asked.teacher is not None:
        opened = open_checkpoint(asked.teacher)
        whole = Flow(load(opened, device=device, dtype=torch.float32), "whole")
        ears = load_front_end(opened, device=device)
        made.append(Candidate("teacher", whole, ears, vae, device, teacher=Origin(whole)))
    return made


def main() -> None:
    asked = _arguments()
    judge = PixelReader()
    judge.load_state_dict(load_file(asked.judge))
    judge.eval().requires_grad_(False)
    speech = SpeechSet.of(Corpus.open(asked.speech), Test, asked.voices)
    set_ = questions(
        speech,
        asked.family,
        characters=asked.characters,
        seconds=asked.seconds,
        minutes=asked.minutes,
    )
    show = moments(set_["speech"])
    answering = candidates(asked)
    answers = [graded(one, set_, judge, show) for one in answering]
    rows = [grades for grades, _ in answers]
    asked.out.mkdir(parents=True, exist_ok=True)
    write_png(
        sheet(set_["speech"], [seen for _, seen in answers], show), asked.out / "evaluation.png"
    )
    text = f"{table(rows)}\n\n{kept(answering[0].vae, set_['speech'])}\n"
    (asked.out / "evaluation.md").write_text(text)
    (asked.out / "evaluation.json").write_text(json.dumps([asdict(row) for row in rows], indent=2))
    sys.stdout.write(text)
    if asked.films is not None:
        asked.films.mkdir(parents=True, exist_ok=True)
        truth = lips_apart(set_["speech"].controls).tolist()
        (asked.films / "truth.json").write_text(json.dumps(truth))
        for one in answering:
            film(one, set_["speech"], asked.films)


def film(candidate: Candidate, question: Question, folder: Path) -> None:
    """Write the answer as NAME-0.mp4, NAME-1.mp4, ..., for people and for the second judge."""
    name = candidate.name.replace(" ", "-").replace(",", "")
    spec, rows = candidate.flow.config.spec, range(len(question.speech))
    films = [Mp4(folder / f"{name}-{row}.mp4", spec) for row in rows]
    for chunk in answer(candidate, question):
        frames = ((chunk.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
        for row in rows:
            films[row].show(frames[row].permute(0, 2, 3, 1).contiguous())
    heard = question.speech[:, question.geometry.run_in :].numpy()
    for row in rows:
        films[row].close(heard[row])


def _named(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError(f"expected NAME=DIR, got {text}")
    return name, Path(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=_named, action="append", required=True, help="NAME=DIR; as often as wanted")
    add("--vae", type=Path, required=True)
    add("--speech", type=Path, required=True, help="folder of the speech corpus")
    add("--judge", type=Path, required=True, help="weights of the judge, from training.reading")
    add("--out", type=Path, required=True)
    add("--teacher", type=Path, help="folder of a teacher: 12 steps with guidance")
    add("--films", type=Path, help="also write every answer as a film, into this folder")
    add("--steps", type=int, nargs="*", default=[], help="also with so many steps")
    add("--family", type=Family, choices=Family, default=Family.STYLISED)
    add("--voices", nargs="+", help="of the corpus; all that were not learned from, unless said")
    add("--characters", type=int, default=6)
    add("--seconds", type=float, default=20.0, help="of speech per character (%(default)s)")
    add("--minutes", type=float, default=0.0, help="of a long stream, for drift (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
