"""Reads hypernyms of nouns from WordNet's own files (https://wordnet.princeton.edu/documentation/wndb5wn)."""

from __future__ import annotations

from pathlib import Path


class WordNet:
    """The nouns of WordNet.

    Args:
        folder: WordNet's folder `dict`, with index.noun and data.noun.

    Raises:
        ValueError: a file is missing or is not as expected.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._offsets: dict[str, list[str]] = {}
        """Offsets of the synsets of every lemma, the most frequent sense first."""
        self._synsets: dict[str, tuple[str, str | None]] = {}
        """For each offset the first lemma and the offset of the first hypernym."""
        try:
            for words in self._lines("index.noun"):
                self._offsets[words[0]] = words[-int(words[2]) :]
            for words in self._lines("data.noun"):
                lemmas = int(words[3], 16)
                pointers = words[5 + 2 * lemmas :]
                above = (
                    pointers[place + 1]
                    for place in range(0, 4 * int(words[4 + 2 * lemmas]), 4)
                    if pointers[place][0] == "@"
                )
                self._synsets[words[0]] = words[4], next(above, None)
        except OSError as error:
            raise ValueError(
                f"{error.filename} cannot be read ({error.strerror}): expected WordNet's folder dict"
            ) from error
        except (IndexError, ValueError) as error:
            raise ValueError(
                f"{self.folder} is not as expected ({error}): expected index.noun and data.noun of WordNet 3"
            ) from error

    def _lines(self, name: str) -> list[list[str]]:
        lines = (self.folder / name).read_text(encoding="utf-8").splitlines()
        return [line.partition("|")[0].split() for line in lines if line and not line.startswith(" ")]

    def hypernyms(self, synset: str) -> list[str]:
        """Returns the names of all hypernyms of a synset, such as "armchair.n.01", the most general first.

        Where a synset has several hypernyms, the first is taken, so that names form a tree. A name is the first lemma of the
        synset, with its sense if that is not the first. Unknown synsets have no hypernyms.
        """
        lemma, _, sense = synset.replace(".n.", " ").partition(" ")
        offsets = self._offsets.get(lemma.lower(), [])
        if not sense.isdecimal() or not 1 <= int(sense) <= len(offsets):
            return []
        found: list[str] = []
        above = self._synsets[offsets[int(sense) - 1]][1]
        while above is not None and len(found) < len(self._synsets):
            found.append(self._name(above))
            above = self._synsets[above][1]
        return found[::-1]

    def _name(self, offset: str) -> str:
        lemma = self._synsets[offset][0]
        sense = self._offsets[lemma.lower()].index(offset) + 1
        return lemma.replace("_", " ") if sense == 1 else f"{lemma.replace('_', ' ')}.n.{sense:02}"
