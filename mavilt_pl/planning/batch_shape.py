"""Lengths of the sequences in one batch of a language stage.

They are those of `language.prompt_builder`; a test packs real sequences and compares.
"""

from __future__ import annotations

from dataclasses import dataclass

from mavilt_pl.language.sequences import WIDTH_MULTIPLE


@dataclass(frozen=True)
class BatchShape:
    """One batch of one GPU, all its sequences as long as the longest.

    The real batches are shorter: texts vary, and `tuning.length_groups` avoids padding.

    Args:
        batch_size: studies.
        codes_per_image: N.
        codebook_size: K.
        text_tokens: of a report.
        questions: of a study, in Stage 2.
        question_tokens: of question and answer together.
        instruction_tokens: of an instruction, in Stage 2.
        multi_view: two images are read, and each is generated from the other.
        replay_texts: plain texts of `text_tokens` in a batch (`data.replay`), on average and
            rounded up.

    >>> shape = BatchShape(batch_size=2, codes_per_image=4, text_tokens=3)
    >>> shape.reading_length, shape.synthesis_length, shape.positions
    (12, 9, 64)
    """

    batch_size: int = 16
    codes_per_image: int = 256
    codebook_size: int = 1024
    text_tokens: int = 128
    questions: int = 0
    question_tokens: int = 16
    instruction_tokens: int = 0
    multi_view: bool = False
    replay_texts: int = 0

    @property
    def reading_length(self) -> int:
        """Positions of a study's images, report and questions."""
        if self.multi_view:
            # <image> view codes </image>, twice
            images = 2 * (self.codes_per_image + 3)
        else:
            # <image> codes </image>
            images = self.codes_per_image + 2
        # <report> text <end>
        report = self.instruction_tokens + 1 + self.text_tokens + 1
        # question <answer> answer <end>
        questions = self.questions * (self.question_tokens + 2)
        # The 1 is <begin>, which images and branches share.
        return 1 + images + report + questions

    @property
    def synthesis_length(self) -> int:
        """Positions of a study's text and the image to generate."""
        # <image> view codes </image> of the other view, and the view token of the generated one
        other_view = self.codes_per_image + 4 if self.multi_view else 0
        # The 2 are <begin> and the <image> that opens the generated one.
        return 2 + other_view + self.instruction_tokens + self.text_tokens + self.codes_per_image

    @property
    def replay_length(self) -> int:
        """Positions of a plain text behind `<begin>`."""
        return 1 + self.text_tokens

    @property
    def passes(self) -> tuple[int, int, int]:
        """Positions of the passes of a step, padding included: reading, synthesis, plain text."""
        return (
            self.batch_size * _padded(self.reading_length),
            self.batch_size * _padded(self.synthesis_length),
            self.replay_texts * _padded(self.replay_length),
        )

    @property
    def positions(self) -> int:
        """Positions of the whole batch: both directions and the replayed texts."""
        return sum(self.passes)

    @property
    def text_targets(self) -> int:
        """Text tokens to predict in reading: reports, answers, and an `<end>` each.

        An answer is taken to be half of `question_tokens`.
        """
        answers = self.questions * (self.question_tokens // 2 + 1)
        return self.batch_size * ((self.text_tokens + 1) + answers)

    @property
    def code_targets(self) -> int:
        """Codes to predict."""
        return self.batch_size * self.codes_per_image

    @property
    def replay_targets(self) -> int:
        """Tokens of plain texts to predict: all but the first of each."""
        return self.replay_texts * (self.text_tokens - 1)


def _padded(length: int) -> int:
    """Width of a batch whose longest sequence is of this length."""
    return -(-length // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
