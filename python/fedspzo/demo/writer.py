"""Writes random reviews, customers' messages and everyday sentences from `grammar.toml`."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LABELS = ("negative", "positive")

_NAMES = re.compile(
    r"\b(i|anna|tom|maria|peter|paris|monday|friday|saturday|sunday|march|june|(?<=in )may)\b"
)
_SENTENCE = re.compile(r"(?:^|(?<=[.!?] ))[a-z]")
_FIELD = re.compile(r"\{(\w+)\}")


def grammar() -> dict[str, Any]:
    """Read the word lists and patterns of `grammar.toml`."""
    return tomllib.loads((HERE / "grammar.toml").read_text(encoding="utf-8"))


def typeset(text: str) -> str:
    """Capitalize sentences and names, and collapse blanks."""
    text = " ".join(text.split())
    text = _NAMES.sub(lambda match: match[0].capitalize(), text)
    return _SENTENCE.sub(lambda match: match[0].upper(), text)


class Writer:
    """Writes random sentences from one seed.

    Args:
        seed: the seed of all choices.
        mixed: chance that a review also concedes the opposite ("…, but …").
        negated: chance that a claim denies the opposite ("not …", "far from …").
        bare: chance that a review which concedes nothing is a single clause.
    """

    def __init__(
        self, seed: int, *, mixed: float = 0.0, negated: float = 0.0, bare: float = 0.0
    ) -> None:
        self.rng = random.Random(seed)
        self.mixed = mixed
        self.negated = negated
        self.bare = bare
        self.conceded = False  # True if the latest review concedes the opposite
        self.mentioned: set[str] = set()  # nouns and events of the latest review
        self.grammar = grammar()

    def pick(self, options: Sequence[str]) -> str:
        """Pick one of `options`. The first are more frequent than the last, as in real text."""
        return options[int(self.rng.random() ** 2 * len(options))]

    def fill(self, pattern: str, lists: dict[str, list[str]]) -> str:
        """Replace each {name} of `pattern` by a choice from the list of that name."""
        return _FIELD.sub(lambda match: self.pick(lists[match[1]]), pattern)

    def adjective(self, aspect: dict[str, Any], good: bool) -> str:
        """Pick a word that fits an aspect or, one time in three, one that fits all aspects."""
        tone = "good" if good else "bad"
        common = self.rng.random() < 1 / 3
        return self.pick(self.grammar["review"][tone] if common else aspect[tone])

    def claim(self, genre: dict[str, Any], label: str, *, reported: bool = False) -> str:
        """Write a clause that praises ("positive") or blames ("negative") one aspect of a genre.

        Args:
            genre: the word lists of a genre.
            label: "positive" or "negative".
            reported: the clause follows "people say that", so it must not say "I". Default False.
        """
        lists = self.grammar["review"]
        negated = self.rng.random() < self.negated
        patterns = lists["negated_claims" if negated else "claims"]
        pattern = self.pick(patterns[:3] if reported else patterns)
        good = label == "positive"
        if pattern == "{event}":
            return self._unused(lambda: self.pick(genre["good_events" if good else "bad_events"]))
        aspect = self.rng.choice(genre["aspects"])
        noun = self._unused(lambda: self.pick(aspect["nouns"]))
        same, second = self.adjective(aspect, good), self.adjective(aspect, good)
        while second == same:
            second = self.adjective(aspect, good)
        other = self.adjective(aspect, not good)
        plain = " " in same
        return pattern.format(
            np=noun.rstrip("*"),
            was="were" if noun.endswith("*") else "was",
            very="" if plain else self.pick(self.grammar["review"]["intensifiers"]),
            same=same,
            same2=second,
            other=other,
        )

    def _unused(self, draw: Callable[[], str]) -> str:
        """Draw until the choice is new to the review, twenty times at most."""
        choice = draw()
        for _ in range(20):
            if choice not in self.mentioned:
                break
            choice = draw()
        self.mentioned.add(choice)
        return choice

    def genre(self) -> dict[str, Any]:
        """Draw a genre of reviews, and return its word lists."""
        genres = self.grammar["genres"]
        chosen: dict[str, Any] = genres[self.rng.choice(sorted(genres))]
        return chosen

    def review(self, genre: dict[str, Any], label: str) -> str:
        """Write a review of one or two sentences whose verdict is `label`.

        Args:
            genre: the word lists of a genre.
            label: "positive" or "negative".
        """
        opposite = LABELS[label == "negative"]
        self.mentioned.clear()
        self.conceded = self.rng.random() < self.mixed
        kind = "mixed" if self.conceded else "bare" if self.rng.random() < self.bare else "single"
        pattern = self.pick(self.grammar["review"][kind])
        return typeset(
            pattern.format(
                claim=self.claim(genre, label),
                claim2=self.claim(genre, label),
                fact=self.claim(genre, label, reported=True),
                against=self.claim(genre, opposite),
                rumour=self.claim(genre, opposite, reported=True),
                setting=self.pick(genre["settings"]),
            )
        )

    def ticket(self, topic: str) -> str:
        """Write a customer's message about `topic`, one of tickets.topics in grammar.toml."""
        tickets = self.grammar["tickets"]
        statements = self.rng.sample(tickets["topics"][topic]["statements"], 2)
        if self.rng.random() < 0.65 or any(line.endswith("?") for line in statements):
            del statements[1]
        body = " and ".join(self.fill(line, tickets["fill"]) for line in statements)
        stop = "" if body.endswith("?") else "."
        return typeset(
            f"{self.pick(tickets['openings'])} {body}{stop} {self.pick(tickets['endings'])}"
        )

    def verdict(self, chances: str) -> str:
        """Write a closing line "It was …", with a word drawn by the weights of that name."""
        review = self.grammar["review"]
        return f"It was {self.rng.choices(review['verdicts'], review[chances])[0]}."

    def reviewed(self) -> str:
        """Write a document of the pretraining corpus: a review with its writer's conclusion."""
        label = self.rng.choice(LABELS)
        tone = "good" if label == "positive" else "bad"
        genre = self.genre()
        text = self.review(genre, label)
        lists = self.grammar["review"]
        chance = self.rng.random()
        if chance < 0.3:
            kind = (label == "positive") != self.conceded
            return f"{text} {self.verdict('verdict_good' if kind else 'verdict_bad')}"
        closing = typeset(self.pick(lists["closings_" + tone]))
        if chance < 0.6:
            return f"{text} {closing}"
        reason = f"{self.pick(lists['opinion_' + tone])} {self.claim(genre, label)}."
        if chance < 0.8:
            return f"{text} {typeset(reason)}"
        return f"{closing} {text} {typeset(reason)}"

    def reported(self) -> str:
        """Write a document of the pretraining corpus: a ticket and, sometimes, its subject."""
        tickets = self.grammar["tickets"]
        topic = self.rng.choice(tickets["subjects"])
        text = self.ticket(topic)
        if self.rng.random() < 0.5:
            return text
        subject = topic
        if self.rng.random() >= tickets["match"]:
            subject = self.rng.choices(tickets["subjects"], tickets["subject_prior"])[0]
        return f"{text} This is about {subject}."

    def everyday(self) -> str:
        """Write a document of the pretraining corpus: one or two plain sentences."""
        lists = self.grammar["everyday"]
        lines = []
        for _ in range(2 if self.rng.random() < 0.6 else 1):
            person, person2 = self.rng.sample(lists["people"], 2)
            act, act2 = self.rng.sample(lists["acts"], 2)
            fields = {"person": person, "person2": person2, "act": act, "act2": act2}
            fields |= {"time": self.pick(lists["times"]), "fact": self.pick(lists["facts"])}
            lines.append(typeset(self.pick(lists["patterns"]).format(**fields)))
        if self.rng.random() < 0.3:
            lines.append(self.verdict("verdict_everyday"))
        return " ".join(lines)
