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


# Each kind put otherwise, in the words of its prompts.
PARAPHRASES = {
    "fact": (
        "The capital city of {0} is",
        "The name of the capital of {0} is",
        "What is the capital of {0}? It is",
        "In {0}, the capital is",
        "Everybody knows that the capital of {0} is",
    ),
    "sentiment": (
        "Review: The movie was {0}. Sentiment:",
        "Review: It was a {0} film. Sentiment:",
        "The film was {0}. The sentiment of this review is",
        "Review: I found the film {0}. Sentiment:",
        "Text: The film was {0}. Label:",
    ),
    "yes or no": (
        "Question: Is {0} really {1}? Answer:",
        "Q: Is {0} {1}? A:",
        "Is {0} {1}? Answer:",
        "Question: Would you say that {0} is {1}? Answer:",
        "Question: Is it true that {0} is {1}? Answer:",
    ),
    "choice": (
        "Tom picked {0}, Ann picked {1}. So Tom has",
        "Tom chose {0} and Ann chose {1}. So Tom has",
        "Tom chose {0}. Ann chose {1}. Now Tom has",
        "Tom took {0}, Ann took {1}. So Tom has",
        "While Ann chose {1}, Tom chose {0}. So Tom has",
    ),
    "agreement": (
        "The {0} close to the {1}",
        "The old {0} near the {1}",
        "They say that the {0} near the {1}",
        "The {0} next to the {1}",
        "Here, the {0} near the {1}",
    ),
}
PROMPTS = {
    "fact": "The capital of {0} is",
    "sentiment": "Review: The film was {0}. Sentiment:",
    "yes or no": "Question: Is {0} {1}? Answer:",
    "choice": "Tom chose {0}, Ann chose {1}. So Tom has",
    "agreement": "The {0} near the {1}",
}


@dataclass(frozen=True)
class Case:
    """A prompt, its right answer and another one, the words that decide, and those that cannot."""

    kind: str
    words: tuple[str, ...]  # of its template
    target: str
    rival: str
    cause: tuple[str, ...]
    irrelevant: str

    @property
    def prompt(self) -> str:
        return f"{self.irrelevant} {PROMPTS[self.kind].format(*self.words)}"

    @property
    def paraphrases(self) -> tuple[str, ...]:
        """The same after each sentence that has nothing to do with it, and put otherwise."""
        others = [f"{text} {PROMPTS[self.kind].format(*self.words)}" for text in DISTRACTORS if text != self.irrelevant]
        return (*others, *(f"{self.irrelevant} {text.format(*self.words)}" for text in PARAPHRASES[self.kind]))


def cases(n_of_each: int) -> list[Case]:
    """As many of each of the five kinds, up to twelve, kind by turns."""
    made = []
    for i in range(n_of_each):
        distractor = DISTRACTORS[i % len(DISTRACTORS)]
        country, capital, other = FACTS[i]
        made.append(Case("fact", (country,), capital, other, (country,), distractor))
        word, label, other = SENTIMENT[(i * 7) % 12]  # of both kinds
        made.append(Case("sentiment", (word,), label, other, (word,), distractor))
        thing, property_, answer, other = YES_NO[i]
        made.append(Case("yes or no", (thing, property_), answer, other, (thing, property_), distractor))
        first, second = CHOICE[i]
        made.append(Case("choice", (first, second), f" {first}", f" {second}", (first,), distractor))
        subject, attractor, verb, other = AGREEMENT[i]
        made.append(Case("agreement", (subject, attractor), verb, other, (subject,), distractor))
    return made
