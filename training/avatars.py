"""Draw the characters that ship with the model: portraits, and an index that names them.

    python -m training.avatars --out models/tiny/avatars

Identities of the test split, which no model has learned from, in repose.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from training.data.faces.behaviour import Motion
from training.data.faces.clip import Scene, render
from training.data.faces.expression import MOUTH
from training.data.faces.family import Family
from training.data.faces.split import Split, identity_seed
from training.sheet import write_png

_SIDE = 384  # pixels; models cut and shrink a picture to what they draw


@dataclass(frozen=True, slots=True)
class Character:
    name: str
    family: Family
    number: int  # of the test split

    @property
    def file(self) -> str:
        return f"{self.name.lower()}.png"

    @property
    def seed(self) -> int:
        return int(identity_seed(Split.TEST, torch.tensor(self.number)))


CAST = (
    Character("Ada", Family.STYLISED, 103),
    Character("Bruno", Family.STYLISED, 126),
    Character("Carmen", Family.STYLISED, 111),
    Character("Dora", Family.STYLISED, 113),
    Character("Esi", Family.STYLISED, 114),
    Character("Felix", Family.STYLISED, 122),
    Character("Greta", Family.HUMAN, 110),
    Character("Hana", Family.HUMAN, 111),
    Character("Imani", Family.HUMAN, 114),
    Character("Jonas", Family.HUMAN, 130),
)


def portrait(character: Character, side: int) -> torch.Tensor:
    """The character looking at us, mouth closed: uint8 [3, side, side]."""
    still = torch.zeros(1)
    scene = Scene(
        family=character.family,
        identity=torch.tensor([character.seed]),
        motion=Motion(torch.tensor([character.number]), still, still),
        mouth=torch.zeros(1, 1, len(MOUTH)),
        speaking=torch.zeros(1, 1),
    )
    return render(scene, side).frames[0, 0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for character in CAST:
        write_png(portrait(character, _SIDE), folder / character.file)
        entries.append(
            {
                "name": character.name,
                "file": character.file,
                "family": character.family.value,
                "seed": character.seed,
            }
        )
    (folder / "index.json").write_text(json.dumps(entries, indent=2) + "\n")


if __name__ == "__main__":
    main()
