"""Settings of the sources whose tags may be label columns."""

from typing import Literal

from raymed.sections import PrepareConfig


class LabelSettings(PrepareConfig):
    """Settings of a source with labels that may be uncertain."""

    uncertain: Literal["u-zeros", "u-ones"] = "u-zeros"
    """How to treat uncertain labels (-1), named as in CheXpert: u-zeros: no tag, u-ones: a tag."""

    @property
    def positive(self) -> tuple[int, ...]:
        """The labels that make a tag."""
        return (1, -1) if self.uncertain == "u-ones" else (1,)
