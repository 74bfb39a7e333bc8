"""Small classes and scripts as people write them into an empty editor, for gaps to fill."""

from __future__ import annotations

IDIOMS: tuple[str, ...] = (
    '''\
class Queue:
    def __init__(self):
        self.entries = []

    def put(self, entry):
        self.entries.append(entry)

    def get(self):
        return self.entries.pop(0)

    def __len__(self):
        return len(self.entries)
''',
    '''\
class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __repr__(self):
        return f"Point({self.x}, {self.y})"

    def __add__(self, other):
        return Point(self.x + other.x, self.y + other.y)

    def distance(self, other):
        return ((self.x - other.x) ** 2 + (self.y - other.y) ** 2) ** 0.5
''',
    '''\
class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        self.balance += amount

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
''',
    '''\
class Tree:
    def __init__(self, key, left=None, right=None):
        self.key = key
        self.left = left
        self.right = right

    def insert(self, key):
        if key < self.key:
            if self.left is None:
                self.left = Tree(key)
            else:
                self.left.insert(key)
        elif self.right is None:
            self.right = Tree(key)
        else:
            self.right.insert(key)

    def depth(self):
        left = self.left.depth() if self.left else 0
        right = self.right.depth() if self.right else 0
        return 1 + max(left, right)
''',
    '''\
class Rectangle:
    def __init__(self, width, height):
        self.width = width
        self.height = height

    @property
    def area(self):
        return self.width * self.height

    @property
    def perimeter(self):
        return 2 * (self.width + self.height)

    def is_square(self):
        return self.width == self.height
''',
    '''\
class Animal:
    def __init__(self, name):
        self.name = name

    def speak(self):
        raise NotImplementedError


class Dog(Animal):
    def speak(self):
        return f"{self.name} says woof"


class Cat(Animal):
    def speak(self):
        return f"{self.name} says meow"
''',
    '''\
class Timer:
    def __enter__(self):
        self.start = time.perf_counter()
        return self

    def __exit__(self, *args):
        self.seconds = time.perf_counter() - self.start
''',
    '''\
class Inventory:
    def __init__(self):
        self.counts = {}

    def add(self, name, count=1):
        self.counts[name] = self.counts.get(name, 0) + count

    def remove(self, name):
        if name not in self.counts:
            raise KeyError(name)
        self.counts[name] -= 1
        if self.counts[name] == 0:
            del self.counts[name]

    def total(self):
        return sum(self.counts.values())
''',
    '''\
from dataclasses import dataclass


@dataclass
class Person:
    name: str
    age: int

    def is_adult(self):
        return self.age >= 18
''',
    '''\
import sys


def main():
    if len(sys.argv) < 2:
        print("usage: script.py NAME")
        return 1
    print(f"Hello, {sys.argv[1]}!")
    return 0


if __name__ == "__main__":
    sys.exit(main())
''',
    '''\
import argparse


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    if args.verbose:
        print(f"reading {args.path}")
    run(args.path)


if __name__ == "__main__":
    main()
''',
    '''\
import json


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def save(path, data):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=2)
''',
    '''\
import csv


def read_rows(path):
    rows = []
    with open(path, newline="") as file:
        for row in csv.reader(file):
            rows.append(row)
    return rows
''',
    '''\
import os


def find_files(folder, suffix):
    found = []
    for name in os.listdir(folder):
        if name.endswith(suffix):
            found.append(os.path.join(folder, name))
    return sorted(found)
''',
    '''\
try:
    import tomllib
except ImportError:
    import tomli as tomllib
''',
    '''\
try:
    import numpy as np
except ModuleNotFoundError:
    np = None
''',
    '''\
def parse_number(text):
    try:
        return int(text)
    except ValueError:
        return None
''',
    '''\
numbers = [3, 1, 2]
for index, number in enumerate(sorted(numbers)):
    print(index, number)
''',
    '''\
total = 0
for number in range(1, 101):
    if number % 3 == 0:
        total += number
print(total)
''',
    '''\
count = 10
while count > 0:
    print(count)
    count -= 1
print("done")
''',
    '''\
names = ["Ada", "Grace", "Alan"]
lengths = {name: len(name) for name in names}
for name, length in lengths.items():
    print(f"{name}: {length}")
''',
    '''\
words = text.lower().split()
counts = {}
for word in words:
    counts[word] = counts.get(word, 0) + 1
for word, count in sorted(counts.items(), key=lambda item: item[1], reverse=True):
    print(word, count)
''',
    '''\
def count_matches(path, word):
    count = 0
    with open(path) as file:
        for line in file:
            if word in line:
                count += 1
    return count
''',
    '''\
def timed(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        start = time.time()
        result = function(*args, **kwargs)
        print(f"{function.__name__} took {time.time() - start:.2f} s")
        return result

    return wrapper
''',
    '''\
def greet(name="world"):
    print(f"Hello, {name}!")


greet()
greet("Ada")
''',
    '''\
def transpose(matrix):
    return [list(row) for row in zip(*matrix)]


def multiply(a, b):
    return [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]
''',
)  # fmt: skip
