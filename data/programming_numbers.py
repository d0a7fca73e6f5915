"""Programming problems about numbers."""

from programming import problem


@problem(1, (9, 234), (0, 0), (7, 7), (15, -96), (1, 1000000), (45, 123456789))
def digit_sum(n: int) -> int:
    """Return the sum of the decimal digits of `n`. A minus sign is ignored."""
    return sum(int(digit) for digit in str(abs(n)))


@problem(1, (True, 2024), (False, 2023), (False, 1900), (True, 2000), (True, 4), (False, 2100))
def is_leap_year(year: int) -> bool:
    """Tell whether `year` has 366 days in the Gregorian calendar.

    Those are the multiples of 4, without the multiples of 100 that are not multiples of 400.
    """
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


@problem(1, (8, 6), (0, 1), (1, 2), (7, 3), (111, 27), (10, 1024))
def collatz_steps(n: int) -> int:
    """Count the steps that take the positive number `n` to 1.

    One step halves an even number and turns an odd number m into 3m + 1.
    """
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


@problem(1, (10, 12, 1, 10), (1, -5, 1, 10), (4, 4, 1, 10), (1, 1, 1, 10), (3, 8, 3, 3))
def clamp(value: int, low: int, high: int) -> int:
    """Return `value`, or the nearer end where it lies outside of `low` to `high` (low <= high)."""
    return max(low, min(value, high))


@problem(1, (6, 12), (1, 1), (2, 97), (3, 49), (20, 240), (9, 36))
def count_divisors(n: int) -> int:
    """Count the positive whole numbers that divide the positive number `n`."""
    return sum(1 for candidate in range(1, n + 1) if n % candidate == 0)


@problem(1, (6, 942), (0, 0), (9, 9), (1, 10), (2, 38), (9, 999999999))
def digital_root(n: int) -> int:
    """Replace the number `n` >= 0 by the sum of its digits until one digit is left; return it."""
    while n > 9:
        n = sum(int(digit) for digit in str(n))
    return n


@problem(1, (321, 123), (-54, -45), (1, 100), (0, 0), (7, 7), (-21, -120))
def reverse_number(n: int) -> int:
    """Return the number whose decimal digits are those of `n` in reverse, with the same sign."""
    digits = int(str(abs(n))[::-1])
    return -digits if n < 0 else digits


@problem(2, (True, 49), (False, 50), (True, 0), (False, -4), (True, 10**16), (False, 10**16 + 1))
def is_perfect_square(n: int) -> bool:
    """Tell whether `n` is the square of a whole number. `n` may be negative or very large."""
    from math import isqrt

    return n >= 0 and isqrt(n) ** 2 == n


@problem(2, (11, 5), (2, 1), (3, 2), (29, 10), (541, 100), (7919, 1000))
def nth_prime(n: int) -> int:
    """Return the `n`-th prime number, counted from 1: the first one is 2."""
    primes: list[int] = []
    candidate = 2
    while len(primes) < n:
        if all(candidate % prime for prime in primes if prime * prime <= candidate):
            primes.append(candidate)
        candidate += 1
    return primes[-1]


@problem(
    2, ([2, 2, 3], 12), ([], 1), ([97], 97), ([2, 2, 2, 2, 2], 32), ([3, 5, 7], 105), ([7, 7], 49)
)
def prime_factors(n: int) -> list[int]:
    """List the prime factors of the positive number `n` in rising order, as often as they occur."""
    factors = []
    divisor = 2
    while n > 1:
        while n % divisor == 0:
            factors.append(divisor)
            n //= divisor
        divisor += 1
    return factors


@problem(2, ("XIV", 14), ("I", 1), ("MCMXCIV", 1994), ("XL", 40), ("MMMCMXCIX", 3999), ("DIX", 509))
def to_roman(n: int) -> str:
    """Write `n` (1 to 3999) as a Roman numeral, with IV, IX, XL, XC, CD and CM."""
    values = [1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1]
    signs = ["M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"]
    numeral = ""
    for value, sign in zip(values, signs, strict=True):
        numeral += sign * (n // value)
        n %= value
    return numeral


@problem(
    1, ("1:01:05", 3665), ("0:00:00", 0), ("0:00:59", 59), ("0:10:00", 600), ("100:00:01", 360001)
)
def clock_text(seconds: int) -> str:
    """Write a number of seconds >= 0 as hours:minutes:seconds.

    Minutes and seconds have two digits; hours have as many as they need.
    """
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


@problem(
    3,
    (2, 8, [1, 4, 5]),
    (0, 0, [2, 3]),
    (-1, 7, [2, 4]),
    (3, 63, [21, 1, 25, 10]),
    (-1, 1, []),
    (20, 100, [5]),
)
def fewest_coins(amount: int, coins: list[int]) -> int:
    """Return the least number of coins whose values add up to `amount`.

    Each value in `coins` (positive) may be used any number of times. Return -1 where it cannot be.
    """
    fewest = [0] + [amount + 1] * amount
    for total in range(1, amount + 1):
        for coin in coins:
            if coin <= total:
                fewest[total] = min(fewest[total], fewest[total - coin] + 1)
    return fewest[amount] if fewest[amount] <= amount else -1


@problem(2, ([2, 3], 8, 12), ([-1, 2], 5, -10), ([0, 1], 0, 7), ([3, 1], -9, -3), ([5, 7], 5, 7))
def reduced_fraction(numerator: int, denominator: int) -> list[int]:
    """Return [numerator, denominator] of the fraction in lowest terms, with denominator > 0.

    The given denominator is not 0. Zero is written as [0, 1].
    """
    from math import gcd

    divisor = gcd(numerator, denominator)
    if denominator < 0:
        divisor = -divisor
    return [numerator // divisor, denominator // divisor]


@problem(2, (2, 9), (0, 7), (0, 8), (4, 529), (0, 0), (3, 69))
def binary_gap(n: int) -> int:
    """Return the length of the longest run of zeros between two ones in the binary form of `n`.

    `n` is >= 0; where there is no such run the answer is 0.
    """
    return max(len(run) for run in bin(n)[2:].strip("0").split("1"))


@problem(2, (24, 100), (0, 4), (1, 5), (0, 0), (6, 25), (249, 1000))
def factorial_zeros(n: int) -> int:
    """Return with how many zeros the decimal form of n! (the factorial of `n` >= 0) ends."""
    zeros = 0
    while n:
        n //= 5
        zeros += n
    return zeros


@problem(
    3, (3, 3, [1, 2]), (1, 0, [1, 2]), (0, 3, [2]), (13, 6, [1, 2]), (24, 6, [1, 2, 3]), (0, 5, [])
)
def ways_to_climb(n: int, steps: list[int]) -> int:
    """Count the ways to climb `n` stairs with strides of the different lengths in `steps`.

    Strides in another order are another way. No stairs are climbed in exactly one way.
    """
    ways = [1] + [0] * n
    for stair in range(1, n + 1):
        ways[stair] = sum(ways[stair - step] for step in steps if step <= stair)
    return ways[n]


@problem(1, (15, 14, 5), (10, 12, 5), (0, 0, 7), (9, 9, 3), (4, 2, 4), (-4, -3, 4), (0, -2, 4))
def nearest_multiple(n: int, k: int) -> int:
    """Return the multiple of the positive number `k` nearest to `n`; of two, the greater one."""
    return (2 * n + k) // (2 * k) * k


@problem(
    2, (90.0, 3, 0), (0.0, 12, 0), (180.0, 6, 0), (165.0, 12, 30), (7.5, 3, 15), (121.5, 9, 27)
)
def clock_angle(hour: int, minute: int) -> float:
    """Return the angle between the hands of a clock in degrees, 0 to 180.

    `hour` is 1 to 12. The hour hand moves evenly between the hours.
    """
    apart = abs(30 * (hour % 12) + minute / 2 - 6 * minute) % 360
    return min(apart, 360 - apart)


@problem(2, (1, 56), (0, 121), (4, 87), (3, 59), (-1, 196), (0, 0))
def steps_to_palindrome(n: int) -> int:
    """Add a number to its reversal until it reads the same from both sides; count the additions.

    `n` is >= 0. Return -1 when it takes more than 50 additions.
    """
    for steps in range(51):
        if str(n) == str(n)[::-1]:
            return steps
        n += int(str(n)[::-1])
    return -1
