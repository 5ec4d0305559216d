"""Problems of a catalog: collected, never raised one by one, so that a user mends all of them in one go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known word, else a full stop."""
    close = get_close_matches(word.lower(), sorted(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else "."


def or_known(word: str, known: Iterable[str]) -> str:
    """As `did_you_mean`, with the list of known words where none is close."""
    words = sorted(known)
    guess = did_you_mean(word, words)
    return guess if guess != "." or not words else f"; known are: {', '.join(words)}."


@dataclass(frozen=True)
class Problems:
    """A growing list of sentences, each of which starts with the place it speaks of."""

    place: str = ""
    sentences: list[str] = field(default_factory=list)

    def at(self, place: str) -> Problems:
        """The same list, for sentences about another place."""
        return Problems(place, self.sentences)

    def add(self, sentence: str) -> None:
        """Note one problem: what is wrong and what to do."""
        self.sentences.append(f"{self.place}: {sentence}" if self.place else sentence)
