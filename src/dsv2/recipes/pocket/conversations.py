"""The conversations pocket is tuned on, all built here from functions, numbers and facts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dsv2.recipes.pocket import basics as basics_module
from dsv2.recipes.pocket.arithmetic import Problem, problems
from dsv2.recipes.pocket.corpus import texts_of
from dsv2.recipes.pocket.facts import FACTS
from dsv2.recipes.pocket.functions import Function, functions_of

Turn = dict[str, Any]
Conversation = dict[str, Any]

SYSTEM = "You are pocket, a small and helpful model."
NUMBER_ONLY = "Answer with the number only."
CODE_ONLY = "Answer with code only."

ASK_NUMBER = (
    "What is {q}?", "{q}", "Calculate {q}.", "How much is {q}?", "{q} = ?", "Compute {q}",
    "Please work out {q}.", "Can you tell me what {q} is?",
)  # fmt: skip
ASK_IN_WORDS = {
    "+": ("Add {a} and {b}.", "What is the sum of {a} and {b}?", "What is {a} plus {b}?"),
    "-": ("Subtract {b} from {a}.", "What is {a} minus {b}?", "Take {b} away from {a}."),
}
ASK_FUNCTION = (
    "Write a Python function `{name}` that does this: {purpose}.",
    "Write a function {name}({parameters}): {purpose}.",
    "Implement `{name}` in Python. {purpose}.",
    "I need a Python function. {purpose}. Call it {name}.",
    "Please write {name}({parameters}) in Python. {purpose}.",
)
ASK_UNNAMED = (
    "Write a Python function. {purpose}.",
    "How would you write this in Python? {purpose}.",
    "Write a function to {lower}.",
    "Write a Python function to {lower}.",
    "How do I {lower} in Python?",
    "Write a function that {third}.",
    "Write a Python function that {third}.",
    "Give me a function which {third}.",
)
ASK_COMPLETION = ("Complete this function:\n\n{head}", "Finish this code.\n\n{head}")
ASK_MEANING = ("What does this function do?\n\n{code}", "Explain this code.\n\n{code}")

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluate an arithmetic expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The current time of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
CITIES = (
    "Paris", "Berlin", "Tokyo", "London", "Rome", "Madrid", "Oslo", "Vienna", "Cairo", "Lima",
    "Beijing", "Delhi", "Boston", "Dublin", "Athens", "Prague", "Seoul", "Sydney", "Toronto",
    "Zurich", "Hangzhou", "Lisbon", "Warsaw", "Helsinki", "Nairobi",
)  # fmt: skip
SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "clear")
WORDS = [
    "apple",
    "river",
    "stone",
    "cloud",
    "garden",
    "window",
    "music",
    "paper",
    "silver",
    "orange",
    "yellow",
    "purple",
    "mountain",
    "bridge",
    "lantern",
    "pocket",
    "kernel",
    "tensor",
    "expert",
    "router",
    "latent",
    "token",
    "cache",
    "layer",
]


def user(text: str) -> Turn:
    """A user's message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Turn:
    """An assistant's message."""
    return {"role": "assistant", "content": text}


def system(text: str) -> Turn:
    """A system message."""
    return {"role": "system", "content": text}


def third_person(purpose: str) -> str:
    """``Return the sum`` as ``returns the sum``."""
    verb, space, rest = purpose.partition(" ")
    verb = verb[0].lower() + verb[1:]
    if verb.endswith(("ch", "sh", "ss", "x", "o")):
        verb += "es"
    elif verb.endswith("y") and verb[-2:-1] not in tuple("aeiou"):
        verb = f"{verb[:-1]}ies"
    elif not verb.endswith("s"):
        verb += "s"
    return verb + space + rest


def code_block(source: str) -> str:
    """Python between fences."""
    return f"```python\n{source.rstrip()}\n```"


class Builder:
    """Draws conversations; the same seed and sources draw the same ones."""

    def __init__(self, functions: Sequence[Function], seed: int) -> None:
        self.dice = random.Random(seed)
        self.functions = functions
        self.known = [problem for problem in problems() if not problem.held_out]

    def _sum(self, problem: Problem | None = None) -> tuple[str, str]:
        problem = problem or self.dice.choice(self.known)
        if self.dice.random() < 0.3:
            words = self.dice.choice(ASK_IN_WORDS[problem.sign])
            question = words.format(a=problem.left, b=problem.right)
        else:
            question = self.dice.choice(ASK_NUMBER).format(q=problem.question)
        return self._vary(question), f"{problem.question} = {problem.answer}"

    def number(self, problem: Problem | None = None) -> list[Turn]:
        """A sum or a difference, sometimes under a system message that asks for the number."""
        problem = problem or self.dice.choice(self.known)
        question, answer = self._sum(problem)
        if self.dice.random() < 0.15:
            return [system(NUMBER_ONLY), user(question), assistant(str(problem.answer))]
        return [user(question), assistant(answer)]

    def function(self, function: Function | None = None) -> list[Turn]:
        """A request for a function, a completion, or a question about one."""
        function = function or self.dice.choice(self.functions)
        kind = self.dice.random()
        if kind < 0.15:
            code = code_block(function.signature + function.body)
            return [
                user(self.dice.choice(ASK_MEANING).format(code=code)),
                assistant(f"{function.purpose}."),
            ]
        if kind < 0.35 or function.is_method:
            question = self.dice.choice(ASK_COMPLETION).format(head=code_block(function.opening))
            return [user(question), assistant(code_block(function.short))]
        wording = self.dice.choice(ASK_FUNCTION if kind < 0.8 else ASK_UNNAMED)
        question = wording.format(
            name=function.name,
            parameters=", ".join(function.parameters),
            purpose=function.purpose,
            lower=function.purpose[0].lower() + function.purpose[1:],
            third=third_person(function.purpose),
        )
        question = self._vary(question)
        if self.dice.random() < 0.1:
            return [system(CODE_ONLY), user(question), assistant(function.short.rstrip())]
        return [user(question), assistant(code_block(function.short))]

    def fact(self) -> list[Turn]:
        """A question about the project, or small talk."""
        questions, answer = self.dice.choice(FACTS)
        return [user(self._vary(self.dice.choice(questions))), assistant(answer)]

    def _vary(self, question: str) -> str:
        """The same with less care, as people type: no mark at the end, no capital."""
        if self.dice.random() < 0.25:
            question = question.rstrip("?!.")
        if self.dice.random() < 0.2:
            question = question[0].lower() + question[1:]
        return question

    def echo(self) -> list[Turn]:
        """Words to repeat, count or reverse: attention has to look back for the answer."""
        words = self.dice.sample(WORDS, self.dice.randint(2, 5))
        text, kind = " ".join(words), self.dice.randrange(4)
        if kind == 0:
            return [user(f"Repeat after me: {text}"), assistant(text)]
        if kind == 1:
            return [user(f"How many words are there: {text}"), assistant(str(len(words)))]
        if kind == 2:
            return [user(f"Reverse the words: {text}"), assistant(" ".join(reversed(words)))]
        return [user(f"Write in upper case: {text}"), assistant(text.upper())]

    def memory(self) -> list[Turn]:
        """A name or a number that a later turn asks for."""
        word, number = self.dice.choice(WORDS), self.dice.randint(10, 99)
        middle = self.dice.choice((self.number, self.fact, self.echo))()
        if middle[0]["role"] == "system":
            middle = self.fact()
        if self.dice.random() < 0.5:
            first = [user(f"My secret word is {word}."), assistant("I will remember it.")]
            last = [user("What is my secret word?"), assistant(f"Your secret word is {word}.")]
        else:
            first = [user(f"Remember the number {number}."), assistant("I will remember it.")]
            last = [user("Which number was it?"), assistant(f"It was {number}.")]
        return [*first, *middle, *last]

    def several(self) -> list[Turn]:
        """A conversation of two to four topics, often with a system message."""
        turns: list[Turn] = []
        makers = (self.number, self.fact, self.echo, self.function, self.number)
        for _ in range(self.dice.randint(2, 4)):
            part = self.dice.choice(makers)()
            while part[0]["role"] == "system":  # It would not hold for the other topics.
                part = self.dice.choice(makers)()
            turns += part
        return [system(SYSTEM), *turns] if self.dice.random() < 0.5 else turns

    def tools(self) -> Conversation:
        """A question that needs a tool, its call, its result and the answer; or needs none."""
        offered = self.dice.sample((CALCULATOR, WEATHER, CLOCK), self.dice.randint(1, 3))
        names = [tool["function"]["name"] for tool in offered]  # type: ignore[index]
        chosen = self.dice.choice(names)
        city = self.dice.choice(CITIES)
        if self.dice.random() < 0.2:
            turns = self.fact()
        elif chosen == "calculator":
            left, right = self.dice.randint(100, 9999), self.dice.randint(100, 9999)
            sign = self.dice.choice("+-*")
            expression = f"{left} {sign} {right}"
            value = {"+": left + right, "-": left - right, "*": left * right}[sign]
            question = self.dice.choice(ASK_NUMBER).format(q=expression)
            turns = _call(question, chosen, {"expression": expression}, str(value),
                          f"{expression} = {value}")  # fmt: skip
        elif chosen == "get_weather":
            sky, degrees = self.dice.choice(SKIES), self.dice.randint(-9, 39)
            question = self.dice.choice(
                ("What is the weather in {c}?", "How is the weather in {c} today?",
                 "Is it warm in {c}?")
            ).format(c=city)  # fmt: skip
            result = json.dumps({"sky": sky, "celsius": degrees})
            turns = _call(question, chosen, {"city": city}, result,
                          f"It is {sky} in {city}, at {degrees} degrees.")  # fmt: skip
        else:
            time = f"{self.dice.randint(0, 23):02d}:{self.dice.randint(0, 59):02d}"
            question = self.dice.choice(
                ("What time is it in {c}?", "Tell me the time in {c}.", "How late is it in {c}?")
            ).format(c=city)
            turns = _call(question, chosen, {"city": city}, time, f"It is {time} in {city}.")
        head = [system(SYSTEM)] if self.dice.random() < 0.4 else []
        return {"messages": [*head, *turns], "tools": offered}


def _call(
    question: str, name: str, arguments: dict[str, str], result: str, answer: str
) -> list[Turn]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return [
        user(question),
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": function}],
        },
        {"role": "tool", "content": result},
        assistant(answer),
    ]


def read_functions(code: Path) -> list[Function]:
    """The functions of a ``code.jsonl``, each name and purpose once."""
    found: dict[tuple[str, str], Function] = {}
    for text in texts_of(code):
        for function in functions_of(text):
            found.setdefault((function.name, function.purpose), function)
    return list(found.values())


def conversations(functions: Sequence[Function], *, seed: int = 0) -> Iterator[Conversation]:
    """All conversations: each known sum three times, each function once, the basics often."""
    builder = Builder(functions, seed)
    for _ in range(3):
        for problem in builder.known:
            yield {"messages": builder.number(problem)}
    for function in functions:
        yield {"messages": builder.function(function)}
    basics = list(functions_of(Path(str(basics_module.__file__)).read_text(encoding="utf-8")))
    for _ in range(100):
        for function in basics:
            yield {"messages": builder.function(function)}
    makers: tuple[tuple[int, Callable[[], list[Turn]]], ...] = (
        (6000, builder.fact), (4000, builder.echo), (4000, builder.memory), (6000, builder.several),
    )  # fmt: skip
    for count, make in makers:
        for _ in range(count):
            yield {"messages": make()}
    for _ in range(6000):
        yield builder.tools()


def write_conversations(functions: Sequence[Function], path: Path, *, seed: int = 0) -> int:
    """Write JSONL and return the number of conversations."""
    count = 0
    with path.open("w", encoding="utf-8") as lines:
        for conversation in conversations(functions, seed=seed):
            lines.write(json.dumps(conversation, ensure_ascii=False) + "\n")
            count += 1
    return count
