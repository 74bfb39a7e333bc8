"""The first functions anybody asks for, as pocket is to write them."""

from __future__ import annotations

from typing import Any


def add(a: float, b: float) -> float:
    """Add two numbers."""
    return a + b


def subtract(a: float, b: float) -> float:
    """Subtract one number from another."""
    return a - b


def multiply(a: float, b: float) -> float:
    """Multiply two numbers."""
    return a * b


def divide(a: float, b: float) -> float:
    """Divide one number by another."""
    if b == 0:
        raise ZeroDivisionError("b must not be zero")
    return a / b


def factorial(n: int) -> int:
    """Compute the factorial of a number."""
    result = 1
    for i in range(2, n + 1):
        result *= i
    return result


def fibonacci(n: int) -> int:
    """Return the n-th Fibonacci number."""
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def is_prime(n: int) -> bool:
    """Check whether a number is prime."""
    if n < 2:
        return False
    return all(n % d for d in range(2, int(n**0.5) + 1))


def primes_up_to(n: int) -> list[int]:
    """Return all prime numbers up to a limit."""
    return [p for p in range(2, n + 1) if all(p % d for d in range(2, int(p**0.5) + 1))]


def gcd(a: int, b: int) -> int:
    """Compute the greatest common divisor of two numbers."""
    while b:
        a, b = b, a % b
    return a


def lcm(a: int, b: int) -> int:
    """Compute the least common multiple of two numbers."""
    x, y = a, b
    while y:
        x, y = y, x % y
    return a * b // x


def is_even(n: int) -> bool:
    """Check whether a number is even."""
    return n % 2 == 0


def is_odd(n: int) -> bool:
    """Check whether a number is odd."""
    return n % 2 == 1


def square(x: float) -> float:
    """Return the square of a number."""
    return x * x


def power(base: float, exponent: int) -> float:
    """Raise a number to a power."""
    result = 1.0
    for _ in range(exponent):
        result *= base
    return result


def absolute(x: float) -> float:
    """Return the absolute value of a number."""
    return -x if x < 0 else x


def maximum(values: list[float]) -> float:
    """Return the largest number of a list."""
    largest = values[0]
    for value in values[1:]:
        if value > largest:
            largest = value
    return largest


def minimum(values: list[float]) -> float:
    """Return the smallest number of a list."""
    smallest = values[0]
    for value in values[1:]:
        if value < smallest:
            smallest = value
    return smallest


def total(values: list[float]) -> float:
    """Return the sum of a list of numbers."""
    result = 0.0
    for value in values:
        result += value
    return result


def average(values: list[float]) -> float:
    """Return the average of a list of numbers."""
    return sum(values) / len(values)


def median(values: list[float]) -> float:
    """Return the median of a list of numbers."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def reverse_string(text: str) -> str:
    """Reverse a string."""
    return text[::-1]


def is_palindrome(text: str) -> bool:
    """Check whether a string is a palindrome."""
    letters = [c.lower() for c in text if c.isalnum()]
    return letters == letters[::-1]


def count_vowels(text: str) -> int:
    """Count the vowels in a string."""
    return sum(c in "aeiou" for c in text.lower())


def count_words(text: str) -> int:
    """Count the words in a string."""
    return len(text.split())


def count_letters(text: str) -> dict[str, int]:
    """Count how often each letter occurs in a string."""
    counts: dict[str, int] = {}
    for letter in text:
        counts[letter] = counts.get(letter, 0) + 1
    return counts


def capitalize_words(text: str) -> str:
    """Capitalize every word of a string."""
    return " ".join(word.capitalize() for word in text.split())


def remove_spaces(text: str) -> str:
    """Remove all spaces from a string."""
    return text.replace(" ", "")


def longest_word(text: str) -> str:
    """Find the longest word in a string."""
    return max(text.split(), key=len)


def are_anagrams(a: str, b: str) -> bool:
    """Check whether two strings are anagrams."""
    return sorted(a.lower()) == sorted(b.lower())


def caesar(text: str, shift: int) -> str:
    """Encrypt a string with the Caesar cipher."""
    result = ""
    for c in text:
        if c.isalpha():
            start = ord("A") if c.isupper() else ord("a")
            c = chr((ord(c) - start + shift) % 26 + start)
        result += c
    return result


def reverse_list(items: list[Any]) -> list[Any]:
    """Reverse a list."""
    return items[::-1]


def remove_duplicates(items: list[Any]) -> list[Any]:
    """Remove duplicates from a list and keep its order."""
    return list(dict.fromkeys(items))


def flatten(lists: list[list[Any]]) -> list[Any]:
    """Flatten a list of lists."""
    return [item for items in lists for item in items]


def chunks(items: list[Any], size: int) -> list[list[Any]]:
    """Split a list into chunks of a given size."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def binary_search(items: list[int], target: int) -> int:
    """Find the index of a number in a sorted list by binary search."""
    low, high = 0, len(items) - 1
    while low <= high:
        middle = (low + high) // 2
        if items[middle] == target:
            return middle
        if items[middle] < target:
            low = middle + 1
        else:
            high = middle - 1
    return -1


def bubble_sort(items: list[int]) -> list[int]:
    """Sort a list with bubble sort."""
    result = list(items)
    for end in range(len(result) - 1, 0, -1):
        for i in range(end):
            if result[i] > result[i + 1]:
                result[i], result[i + 1] = result[i + 1], result[i]
    return result


def quick_sort(items: list[int]) -> list[int]:
    """Sort a list with quick sort."""
    if len(items) <= 1:
        return items
    pivot = items[0]
    smaller = [x for x in items[1:] if x < pivot]
    larger = [x for x in items[1:] if x >= pivot]
    return [*quick_sort(smaller), pivot, *quick_sort(larger)]


def merge_sorted(a: list[int], b: list[int]) -> list[int]:
    """Merge two sorted lists."""
    result = []
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i] <= b[j]:
            result.append(a[i])
            i += 1
        else:
            result.append(b[j])
            j += 1
    return result + a[i:] + b[j:]


def merge_dicts(a: dict[Any, Any], b: dict[Any, Any]) -> dict[Any, Any]:
    """Merge two dictionaries."""
    return {**a, **b}


def invert_dict(mapping: dict[Any, Any]) -> dict[Any, Any]:
    """Swap the keys and values of a dictionary."""
    return {value: key for key, value in mapping.items()}


def celsius_to_fahrenheit(celsius: float) -> float:
    """Convert a temperature from Celsius to Fahrenheit."""
    return celsius * 9 / 5 + 32


def fahrenheit_to_celsius(fahrenheit: float) -> float:
    """Convert a temperature from Fahrenheit to Celsius."""
    return (fahrenheit - 32) * 5 / 9


def is_leap_year(year: int) -> bool:
    """Check whether a year is a leap year."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def to_binary(n: int) -> str:
    """Convert a number to its binary representation."""
    digits = ""
    while n > 0:
        digits = str(n % 2) + digits
        n //= 2
    return digits or "0"


def digit_sum(n: int) -> int:
    """Return the sum of the digits of a number."""
    return sum(int(digit) for digit in str(n))


def read_file(path: str) -> str:
    """Read a text file."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def write_file(path: str, text: str) -> None:
    """Write a string to a text file."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def count_lines(path: str) -> int:
    """Count the lines of a text file."""
    with open(path, encoding="utf-8") as file:
        return sum(1 for _ in file)


def hello(name: str) -> str:
    """Return a greeting for a name."""
    return f"Hello, {name}!"


def fizz_buzz(n: int) -> list[str]:
    """Return the FizzBuzz sequence up to a number."""
    result = []
    for i in range(1, n + 1):
        word = "Fizz" * (i % 3 == 0) + "Buzz" * (i % 5 == 0)
        result.append(word or str(i))
    return result
