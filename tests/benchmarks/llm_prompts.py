"""Prompts with two answers, of which it is known which words decide, and some which cannot."""

from __future__ import annotations

from dataclasses import dataclass

FACTS = [
    ("France", " Paris", " London"),
    ("Italy", " Rome", " Paris"),
    ("Japan", " Tokyo", " Beijing"),
    ("Germany", " Berlin", " Paris"),
    ("Spain", " Madrid", " Rome"),
    ("Russia", " Moscow", " Berlin"),
    ("Egypt", " Cairo", " Rome"),
    ("England", " London", " Paris"),
    ("China", " Beijing", " Tokyo"),
    ("Greece", " Athens", " Rome"),
    ("Poland", " Warsaw", " Berlin"),
    ("Austria", " Vienna", " Berlin"),
]
SENTIMENT = [
    *(
        (word, " positive", " negative")
        for word in ("wonderful", "excellent", "brilliant", "great", "lovely", "superb")
    ),
    *((word, " negative", " positive") for word in ("terrible", "boring", "awful", "horrible", "bad", "dull")),
]
YES_NO = [
    ("fire", "hot", " Yes", " No"),
    ("ice", "hot", " No", " Yes"),
    ("snow", "white", " Yes", " No"),
    ("snow", "black", " No", " Yes"),
    ("sugar", "sweet", " Yes", " No"),
    ("stone", "soft", " No", " Yes"),
    ("water", "wet", " Yes", " No"),
    ("water", "dry", " No", " Yes"),
    ("grass", "green", " Yes", " No"),
    ("blood", "blue", " No", " Yes"),
    ("honey", "sweet", " Yes", " No"),
    ("iron", "light", " No", " Yes"),
]
CHOICE = [
    ("cat", "dog"),
    ("red", "blue"),
    ("book", "lamp"),
    ("car", "boat"),
    ("hat", "coat"),
    ("gold", "iron"),
    ("dog", "cat"),
    ("blue", "red"),
    ("lamp", "book"),
    ("boat", "car"),
    ("coat", "hat"),
    ("iron", "gold"),
]
AGREEMENT = [
    ("keys", "cabinet", " are", " is"),
    ("key", "cabinets", " is", " are"),
    ("books", "shelf", " are", " is"),
    ("book", "shelves", " is", " are"),
    ("pictures", "wall", " are", " is"),
    ("picture", "walls", " is", " are"),
    ("roads", "village", " are", " is"),
    ("road", "villages", " is", " are"),
    ("flowers", "garden", " are", " is"),
    ("flower", "gardens", " is", " are"),
    ("letters", "friend", " are", " is"),
    ("letter", "friends", " is", " are"),
]
# Sentences before a prompt that have nothing to do with it.
DISTRACTORS = ["My bike is old.", "We had tea.", "It rained."]


@dataclass(frozen=True)
class Case:
    """A prompt, its right answer and another one, the words that decide, and those that cannot."""

    kind: str
    prompt: str
    target: str
    rival: str
    cause: tuple[str, ...]
    irrelevant: str


def cases(n_of_each: int) -> list[Case]:
    """As many of each of the five kinds, up to twelve, kind by turns."""
    made = []
    for i in range(n_of_each):
        distractor = DISTRACTORS[i % len(DISTRACTORS)]
        country, capital, other = FACTS[i]
        made.append(Case("fact", f"{distractor} The capital of {country} is", capital, other, (country,), distractor))
        word, label, other = SENTIMENT[(i * 7) % 12]  # of both kinds
        prompt = f"{distractor} Review: The film was {word}. Sentiment:"
        made.append(Case("sentiment", prompt, label, other, (word,), distractor))
        thing, property_, answer, other = YES_NO[i]
        prompt = f"{distractor} Question: Is {thing} {property_}? Answer:"
        made.append(Case("yes or no", prompt, answer, other, (thing, property_), distractor))
        first, second = CHOICE[i]
        prompt = f"{distractor} Tom chose {first}, Ann chose {second}. So Tom has"
        made.append(Case("choice", prompt, f" {first}", f" {second}", (first,), distractor))
        subject, attractor, verb, other = AGREEMENT[i]
        prompt = f"{distractor} The {subject} near the {attractor}"
        made.append(Case("agreement", prompt, verb, other, (subject,), distractor))
    return made
