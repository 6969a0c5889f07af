"""A second judge, who knows nothing of our renderers: MediaPipe's face mesh watches films.

Runs in an environment of its own, which `mediapipe_judge.sh` makes, because MediaPipe 0.10.14 (the
last version that carries its models) wants old packages. Imports nothing of this project.

    sh training/mediapipe_judge.sh FOLDER     with NAME-0.mp4, NAME-1.mp4, ... and truth.json

`training.evaluate --films` writes such a folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import mediapipe as mp
import numpy as np
from numpy.typing import NDArray

_UPPER, _LOWER = 13, 14  # the inner edges of the lips
_BROW, _CHIN = 10, 152
_SIZE, _MARGIN = 384, 60  # small heads are found better when larger and not cut off
_REACH = 6  # frames of lag that are looked at

Series = NDArray[np.float64]


def lip_gaps(film: Path) -> Series:
    """The gap between the lips over the height of the face, per frame; NaN where none is found."""
    mesh = mp.solutions.face_mesh.FaceMesh(
        static_image_mode=False,
        max_num_faces=1,
        refine_landmarks=True,
        min_detection_confidence=0.2,
        min_tracking_confidence=0.2,
    )
    frames, gaps = cv2.VideoCapture(str(film)), []
    while (read := frames.read())[0]:
        found = mesh.process(_prepared(read[1])).multi_face_landmarks
        gaps.append(_gap(found[0].landmark) if found else np.nan)
    return np.array(gaps)


def compared(gaps: Series, truth: Series) -> dict[str, float]:
    """Share of frames with a face, correlation at no lag, and the lag in frames that fits best."""
    found = ~np.isnan(gaps)
    if found.mean() < 0.5:
        return {"found": float(found.mean()), "r": float("nan"), "lag": float("nan")}
    frames = np.arange(len(gaps))
    seen, length = np.interp(frames, frames[found], gaps[found]), len(gaps)

    def at(lag: int) -> float:
        made = seen[max(0, lag) : length + min(0, lag)]
        true = truth[max(0, -lag) : length - max(0, lag)]
        return float(np.corrcoef(made, true)[0, 1])

    lags = range(-_REACH, _REACH + 1)
    return {"found": float(found.mean()), "r": at(0), "lag": float(max(lags, key=at))}


def _prepared(frame: NDArray[Any]) -> NDArray[Any]:
    large = cv2.resize(frame, (_SIZE, _SIZE), interpolation=cv2.INTER_CUBIC)
    sides = (_MARGIN,) * 4
    framed = cv2.copyMakeBorder(large, *sides, cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(cv2.cvtColor(framed, cv2.COLOR_BGR2RGB))


def _gap(points: Any) -> float:
    def apart(a: int, b: int) -> float:
        return float(np.hypot(points[a].x - points[b].x, points[a].y - points[b].y))

    return apart(_UPPER, _LOWER) / apart(_BROW, _CHIN)


def main() -> None:
    folder = Path(sys.argv[1])
    truth = [np.array(row) for row in json.loads((folder / "truth.json").read_text())]
    models = sorted({film.stem.rpartition("-")[0] for film in folder.glob("*-*.mp4")})
    lines = ["| model | faces found | lip gap r (lowest) | lag, frames |", "|---|---|---|---|"]
    for model in models:
        films = [folder / f"{model}-{row}.mp4" for row in range(len(truth))]
        rows = [compared(lip_gaps(film), true) for film, true in zip(films, truth, strict=True)]
        mean = {key: float(np.nanmean([row[key] for row in rows])) for key in rows[0]}
        lowest = min(row["r"] for row in rows)
        lines.append(
            f"| {model} | {mean['found']:.0%} | {mean['r']:.3f} ({lowest:.2f}) "
            f"| {mean['lag']:+.1f} |"
        )
    (folder / "mediapipe.md").write_text("\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
