"""Generates the math domain: worked arithmetic, as plain text and as conversations."""

import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction

Problem = tuple[str, str]


def addition(rng: random.Random) -> Problem:
    """Return a sum of two numbers, added by place."""
    a, b = rng.randint(1, 9999), rng.randint(1, 9999)
    if rng.random() < 0.4:
        a, b = a % 100 + 1, b % 100 + 1
    steps = [f"{a // p % 10 * p} + {b // p % 10 * p}" for p in (1000, 100, 10, 1) if a + b >= p]
    values = [str((a // p % 10 + b // p % 10) * p) for p in (1000, 100, 10, 1) if a + b >= p]
    work = f"{' ; '.join(steps)} = {' + '.join(values)} = {a + b}"
    return f"{a} + {b}", f"{work}\n{a} + {b} = {a + b}"


def subtraction(rng: random.Random) -> Problem:
    """Return a difference, taken in two steps."""
    a, b = rng.randint(10, 999), rng.randint(1, 999)
    tens, ones = b // 10 * 10, b % 10
    work = f"{a} - {tens} = {a - tens}\n{a - tens} - {ones} = {a - b}"
    return f"{a} - {b}", f"{work}\n{a} - {b} = {a - b}"


def multiplication(rng: random.Random) -> Problem:
    """Return a product, split at the second factor's digits."""
    a = rng.randint(2, 99) if rng.random() < 0.75 else rng.randint(100, 999)
    b = rng.randint(2, 99)
    if b < 10:
        parts = [f"{a // 10 * 10} * {b} = {a // 10 * 10 * b}", f"{a % 10} * {b} = {a % 10 * b}"]
        total = f"{a // 10 * 10 * b} + {a % 10 * b} = {a * b}"
    else:
        tens, ones = b // 10 * 10, b % 10
        parts = [f"{a} * {tens} = {a * tens}", f"{a} * {ones} = {a * ones}"]
        total = f"{a * tens} + {a * ones} = {a * b}"
    return f"{a} * {b}", "\n".join([*parts, total, f"{a} * {b} = {a * b}"])


def division(rng: random.Random) -> Problem:
    """Return a quotient with its remainder."""
    b, q = rng.randint(2, 25), rng.randint(2, 60)
    r = rng.randrange(b) if rng.random() < 0.6 else 0
    a = b * q + r
    rest = f" remainder {r}" if r else ""
    return f"{a} / {b}", f"{b} * {q} = {b * q}\n{a} - {b * q} = {r}\n{a} / {b} = {q}{rest}"


def percentage(rng: random.Random) -> Problem:
    """Return a percentage of a number."""
    p, n = rng.choice((1, 5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80)), rng.randint(1, 90) * 20
    value = Fraction(p * n, 100)
    return f"{p}% of {n}", f"{n} / 100 = {n / 100:g}\n{n / 100:g} * {p} = {float(value):g}"


def fractions(rng: random.Random) -> Problem:
    """Return a sum of two fractions, reduced."""
    a, c = rng.randint(1, 9), rng.randint(1, 9)
    b, d = rng.randint(2, 12), rng.randint(2, 12)
    common = math.lcm(b, d)
    left, right = a * common // b, c * common // d
    total = Fraction(a, b) + Fraction(c, d)
    work = f"{a}/{b} = {left}/{common}\n{c}/{d} = {right}/{common}"
    return f"{a}/{b} + {c}/{d}", f"{work}\n{left}/{common} + {right}/{common} = {total}"


def equation(rng: random.Random) -> Problem:
    """Return a linear equation, solved step by step."""
    a, x, b = rng.randint(2, 12), rng.randint(-12, 20), rng.randint(1, 40)
    c = a * x + b
    work = f"{a}x = {c} - {b}\n{a}x = {c - b}\nx = {c - b} / {a}\nx = {x}"
    return f"solve {a}x + {b} = {c}", work


def power(rng: random.Random) -> Problem:
    """Return a power, multiplied out."""
    base, exponent = rng.randint(2, 12), rng.randint(2, 5)
    steps = [f"{base}^{e} = {base ** (e - 1)} * {base} = {base**e}" for e in range(2, exponent + 1)]
    return f"{base}^{exponent}", "\n".join(steps)


def greatest_divisor(rng: random.Random) -> Problem:
    """Return a greatest common divisor by Euclid's algorithm."""
    factor = rng.randint(1, 15)
    a, b = factor * rng.randint(2, 40), factor * rng.randint(2, 40)
    question, steps = f"gcd({a}, {b})", []
    x, y = max(a, b), min(a, b)
    while y:
        steps.append(f"{x} = {x // y} * {y} + {x % y}")
        x, y = y, x % y
    return question, "\n".join([*steps, f"{question} = {x}"])


def precedence(rng: random.Random) -> Problem:
    """Return an expression whose product comes first."""
    a, b, c = rng.randint(1, 60), rng.randint(2, 12), rng.randint(2, 12)
    value = a + b * c
    return f"{a} + {b} * {c}", f"{b} * {c} = {b * c}\n{a} + {b * c} = {value}"


def parentheses(rng: random.Random) -> Problem:
    """Return an expression whose bracket comes first."""
    a, b, c = rng.randint(2, 40), rng.randint(2, 40), rng.randint(2, 12)
    return f"({a} + {b}) * {c}", f"{a} + {b} = {a + b}\n{a + b} * {c} = {(a + b) * c}"


def remainder(rng: random.Random) -> Problem:
    """Return a remainder, written as Python's modulo."""
    b = rng.randint(2, 20)
    a = rng.randint(b, 400)
    return f"{a} % {b}", f"{b} * {a // b} = {a // b * b}\n{a} - {a // b * b} = {a % b}"


def maximum(rng: random.Random) -> Problem:
    """Return the largest of a few numbers."""
    numbers = [rng.randint(1, 999) for _ in range(rng.randint(3, 6))]
    return f"max({', '.join(map(str, numbers))})", f"The largest is {max(numbers)}."


def average(rng: random.Random) -> Problem:
    """Return a mean that comes out whole."""
    count, mean = rng.randint(3, 5), rng.randint(5, 60)
    numbers = [rng.randint(1, 2 * mean) for _ in range(count - 1)]
    numbers.append(count * mean - sum(numbers))
    if numbers[-1] <= 0:
        return average(rng)
    listed = " + ".join(map(str, numbers))
    work = f"{listed} = {sum(numbers)}\n{sum(numbers)} / {count} = {mean}"
    return f"the average of {', '.join(map(str, numbers))}", work


NAMES = "Ana Ben Cleo Dan Eva Finn Gina Hugo Iris Jon"
THINGS = "apples books pens coins cards stamps keys cups"


def story(rng: random.Random) -> Problem:
    """Return a word problem of one operation."""
    name, things = rng.choice(NAMES.split()), rng.choice(THINGS.split())
    a, b = rng.randint(2, 60), rng.randint(2, 20)
    if rng.random() < 0.5:
        question = f"{name} has {a} {things} and buys {b} more. How many {things} does {name} have?"
        return question, f"{a} + {b} = {a + b}\n{name} has {a + b} {things}."
    question = f"{name} has {b} boxes with {a} {things} each. How many {things} are there?"
    return question, f"{a} * {b} = {a * b}\nThere are {a * b} {things}."


KINDS: tuple[tuple[Callable[[random.Random], Problem], int], ...] = (
    (addition, 3),
    (subtraction, 3),
    (multiplication, 6),
    (division, 3),
    (percentage, 2),
    (fractions, 2),
    (equation, 2),
    (power, 1),
    (greatest_divisor, 2),
    (precedence, 1),
    (parentheses, 1),
    (remainder, 1),
    (maximum, 1),
    (average, 1),
    (story, 2),
)
FORMS = (
    "What is {q}?",
    "What is {q}?",
    "Calculate {q}.",
    "{q}",
    "{q} = ?",
    "Compute {q}",
    "{q} =",
    "what is {q}",
    "How much is {q}?",
)


def problems(count: int, rng: random.Random) -> Iterator[Problem]:
    """Yield `count` questions with worked answers, phrased as a person asks."""
    makers = [maker for maker, weight in KINDS for _ in range(weight)]
    for _ in range(count):
        question, answer = rng.choice(makers)(rng)
        if question.startswith("solve"):
            question = rng.choice((question, question.capitalize() + ".", question.capitalize()))
        elif not question.endswith("?"):
            question = rng.choice(FORMS).format(q=question)
        yield question, answer


def worksheet(size: int, rng: random.Random) -> str:
    """Return a plain page of `size` worked problems."""
    pages = (f"Problem: {question}\n{answer}" for question, answer in problems(size, rng))
    return "\n\n".join(pages)
