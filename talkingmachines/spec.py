"""Time and picture size of a stream, stated once.

The checkpoint owns these numbers; the score service announces them when a session attaches, and
everybody else carries the `StreamSpec` along. Nobody configures them twice.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from talkingmachines.errors import BadInput


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """Geometry of one stream in media time.

    Every chunk of the stream decodes to the same number of frames and plays over the same number
    of audio samples, because the anchor image enters the VAE as a one-frame latent of its own
    before the first chunk.

    Raises:
        BadInput: a number is out of range, or a chunk is not a whole number of samples.
    """

    sample_rate: int  # Hz, mono, of the speech that drives the picture
    fps: int  # video frames per second of media time
    latents_per_chunk: int  # latent frames that are denoised together
    frames_per_latent: int  # video frames that one latent frame decodes to
    width: int  # pixels
    height: int  # pixels
    lookahead_samples: int = 0  # samples after a chunk's end that shape its lips

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name == "lookahead_samples" else 1
            if getattr(self, field.name) < least:
                raise BadInput(
                    field.name,
                    got=getattr(self, field.name),
                    expected=f"an integer >= {least}",
                )
        if self.sample_rate * self.frames_per_chunk % self.fps:
            raise BadInput(
                "sample_rate",
                got=f"{self.sample_rate} Hz with {self.frames_per_chunk} frames at {self.fps} fps",
                expected="a rate at which a chunk is a whole number of samples",
            )

    @property
    def frames_per_chunk(self) -> int:
        return self.latents_per_chunk * self.frames_per_latent

    @property
    def samples_per_chunk(self) -> int:
        return self.sample_rate * self.frames_per_chunk // self.fps

    @property
    def chunk_seconds(self) -> float:
        """Seconds of media that one chunk covers: the period within which it must be made."""
        return self.frames_per_chunk / self.fps

    @property
    def lookahead_seconds(self) -> float:
        """Seconds of speech after a chunk's end that must be known before it can be drawn."""
        return self.lookahead_samples / self.sample_rate

    def first_sample(self, chunk: int) -> int:
        """Media-clock sample at which `chunk` begins."""
        return chunk * self.samples_per_chunk

    def first_frame(self, chunk: int) -> int:
        """Media-clock frame at which `chunk` begins."""
        return chunk * self.frames_per_chunk

    def chunk_of_sample(self, sample: int) -> int:
        """The chunk that is playing at media-clock `sample`."""
        return sample // self.samples_per_chunk

    def frame_seconds(self, frame: int) -> float:
        """Presentation time in seconds of media-clock `frame`."""
        return frame / self.fps

    def sample_of_frame(self, frame: int) -> int:
        """Media-clock sample at which `frame` appears, rounded down."""
        return frame * self.sample_rate // self.fps
