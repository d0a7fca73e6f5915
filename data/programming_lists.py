"""Programming problems about lists, tables and graphs."""

from programming import problem


@problem(
    1, ([3, 4, 9], [3, 1, 5]), ([], []), ([-2], [-2]), ([1, 0, 0], [1, -1, 0]), ([0, 0], [0, 0])
)
def running_totals(numbers: list[int]) -> list[int]:
    """Return for each number the sum of all numbers up to and including it."""
    totals: list[int] = []
    for number in numbers:
        totals.append(number + (totals[-1] if totals else 0))
    return totals


@problem(1, (7, [4, 9, 7, 9]), (None, []), (None, [5, 5]), (-3, [-1, -3]), (1, [2, 1]), (None, [8]))
def second_largest(numbers: list[int]) -> int | None:
    """Return the second largest of the different values in `numbers`, or None with fewer than two.

    Values that occur several times count once.
    """
    different = sorted(set(numbers))
    return different[-2] if len(different) > 1 else None


@problem(
    1,
    ([[1, 2], [3, 4], [5]], [1, 2, 3, 4, 5], 2),
    ([], [], 3),
    ([[1, 2]], [1, 2], 5),
    ([["a"], ["b"]], ["a", "b"], 1),
    ([[0, 0, 0]], [0, 0, 0], 3),
)
def in_chunks(items: list[object], size: int) -> list[list[object]]:
    """Cut `items` into lists of `size` (>= 1) items in order; the last one may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


@problem(
    1,
    ([4, 5, 1, 2, 3], [1, 2, 3, 4, 5], 2),
    ([], [], 4),
    ([2, 3, 1], [1, 2, 3], -1),
    ([1, 2], [1, 2], 0),
    ([3, 1, 2], [1, 2, 3], 7),
    (["x"], ["x"], 100),
)
def rotated(items: list[object], k: int) -> list[object]:
    """Return `items` moved `k` places to the right, the last ones coming round to the front.

    A negative `k` moves to the left; `k` may be larger than the list.
    """
    cut = -k % len(items) if items else 0
    return items[cut:] + items[:cut]


@problem(
    2,
    ([1, 2, 3, 4], [1, [2, [3]], 4]),
    ([], []),
    ([], [[], [[]]]),
    (["ab", "c"], ["ab", ["c"]]),
    ([5], [[[[[5]]]]]),
    ([1, None, 2], [1, [None], 2]),
)
def flattened(nested: list[object]) -> list[object]:
    """Return the items of lists within lists, however deep, as one list in order.

    Texts are items, not lists.
    """
    flat: list[object] = []
    for item in nested:
        flat += flattened(item) if isinstance(item, list) else [item]
    return flat


@problem(
    1,
    ([3, 1, 2], [3, 1, 3, 2, 1]),
    ([], []),
    ([0], [0, 0, 0]),
    ([1, 2], [1, 2]),
    (["b", "a"], ["b", "a", "b"]),
)
def without_repeats(items: list[object]) -> list[object]:
    """Return `items` without those that occurred before in the list, in the same order."""
    return list(dict.fromkeys(items))


@problem(
    1,
    ([[1, 4], [2, 5], [3, 6]], [[1, 2, 3], [4, 5, 6]]),
    ([], []),
    ([[7]], [[7]]),
    ([[1], [2]], [[1, 2]]),
    ([[1, 2]], [[1], [2]]),
)
def transposed(table: list[list[int]]) -> list[list[int]]:
    """Turn the rows of `table` into columns. All rows have the same length, at least 1."""
    return [list(column) for column in zip(*table, strict=True)]


@problem(
    2,
    ([1, 2, 3, 4, 8], [1, 3, 8], [2, 4]),
    ([], [], []),
    ([5], [], [5]),
    ([1, 1, 1], [1, 1], [1]),
    ([-2, 0, 3], [3], [-2, 0]),
)
def merged(first: list[int], second: list[int]) -> list[int]:
    """Merge two lists in rising order into one in rising order, keeping repeated numbers."""
    result = []
    i = j = 0
    while i < len(first) or j < len(second):
        if j == len(second) or (i < len(first) and first[i] <= second[j]):
            result.append(first[i])
            i += 1
        else:
            result.append(second[j])
            j += 1
    return result


@problem(
    2,
    (2, [1, 4, 2, 3], 5),
    (0, [], 0),
    (3, [2, 2, 2], 4),
    (0, [5], 10),
    (4, [1, 1, 3, 3], 4),
    (1, [-3, 3, 8], 0),
    (499500, [0] * 1000, 0),
)
def count_pairs(numbers: list[int], total: int) -> int:
    """Count the pairs of different places in `numbers` whose numbers add up to `total`."""
    seen: dict[int, int] = {}
    pairs = 0
    for number in numbers:
        pairs += seen.get(total - number, 0)
        seen[number] = seen.get(number, 0) + 1
    return pairs


@problem(
    2, (3, [3, 1, 3, 3]), (None, []), (None, [1, 2]), (7, [7]), (None, [1, 1, 2, 2]), (0, [0, 5, 0])
)
def majority(numbers: list[int]) -> int | None:
    """Return the number that fills more than half of the places of `numbers`, or None."""
    return next((n for n in set(numbers) if 2 * numbers.count(n) > len(numbers)), None)


@problem(
    2,
    ([[1, 5], [8, 9]], [[1, 3], [8, 9], [2, 5]]),
    ([], []),
    ([[1, 4]], [[1, 2], [2, 4]]),
    ([[1, 2], [3, 4]], [[3, 4], [1, 2]]),
    ([[0, 10]], [[0, 10], [3, 4]]),
    ([[5, 5]], [[5, 5], [5, 5]]),
)
def joined_intervals(intervals: list[list[int]]) -> list[list[int]]:
    """Join intervals [start, end] that share at least one point; return the rest in rising order.

    Both ends belong to an interval, and start <= end.
    """
    joined: list[list[int]] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    return joined


@problem(
    3,
    ([1, 2, 3, 6, 9, 8, 7, 4, 5], [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
    ([], []),
    ([1], [[1]]),
    ([1, 2, 3], [[1, 2, 3]]),
    ([1, 2, 3], [[1], [2], [3]]),
    ([1, 2, 4, 6, 5, 3], [[1, 2], [3, 4], [5, 6]]),
)
def spiral(table: list[list[int]]) -> list[int]:
    """Read `table` clockwise from the upper left corner inwards, each field once.

    All rows have the same length, at least 1.
    """
    rest = [list(row) for row in table]
    read: list[int] = []
    while rest:
        read += rest.pop(0)
        rest = [list(column) for column in zip(*rest, strict=True)][::-1]
    return read


@problem(
    2,
    (9, [2, -1, 3, -6, 4, 5]),
    (0, []),
    (0, [-3, -1]),
    (6, [1, 2, 3]),
    (7, [-1, 7, -2]),
    (8, [5, -4, 7, -9]),
)
def best_stretch(numbers: list[int]) -> int:
    """Return the largest sum of neighbouring numbers; the stretch may be empty, with sum 0."""
    best = here = 0
    for number in numbers:
        here = max(0, here + number)
        best = max(best, here)
    return best


@problem(
    1,
    ([2, 4], [1, 3, 5], 5),
    ([1, 2, 3], [], 3),
    ([], [2, 1], 2),
    ([], [], 0),
    ([1], [2, 2, 9, -1], 2),
)
def missing_numbers(numbers: list[int], n: int) -> list[int]:
    """List in rising order the whole numbers from 1 to `n` that are not in `numbers`."""
    present = set(numbers)
    return [number for number in range(1, n + 1) if number not in present]


@problem(
    2,
    ([[19, 22], [43, 50]], [[1, 2], [3, 4]], [[5, 6], [7, 8]]),
    ([[6]], [[2]], [[3]]),
    ([[32]], [[1, 2, 3]], [[4], [5], [6]]),
    ([[1, 2], [3, 4]], [[1, 0], [0, 1]], [[1, 2], [3, 4]]),
    ([[2, 4], [3, 6]], [[2], [3]], [[1, 2]]),
)
def matrix_product(a: list[list[int]], b: list[list[int]]) -> list[list[int]]:
    """Return the product of two matrices, given as lists of rows of fitting sizes (at least 1)."""
    columns = list(zip(*b, strict=True))
    return [
        [sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in a
    ]


@problem(
    3,
    (2, ["##..", ".#..", "...#"]),
    (0, []),
    (0, ["...", "..."]),
    (1, ["###", "#.#", "###"]),
    (5, ["#.#", ".#.", "#.#"]),
    (1, ["#"]),
)
def count_islands(rows: list[str]) -> int:
    """Count the islands on a map: "#" is land, "." is water, and all rows have the same length.

    Fields of land belong together where they share a side.
    """
    land = {(x, y) for y, row in enumerate(rows) for x, field in enumerate(row) if field == "#"}
    islands = 0
    while land:
        islands += 1
        shore = [land.pop()]
        while shore:
            x, y = shore.pop()
            near = {(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)} & land
            land -= near
            shore += near
    return islands


@problem(
    2,
    (["fig", "kiwi"], ["kiwi", "fig", "plum", "fig", "kiwi", "fig"], 2),
    ([], [], 3),
    (["a", "b"], ["b", "a"], 2),
    (["a"], ["b", "a"], 1),
    (["x"], ["x", "x"], 5),
    ([], ["x"], 0),
)
def most_frequent(words: list[str], k: int) -> list[str]:
    """List the `k` most frequent of the different `words`, the most frequent first.

    Words that are equally frequent are in alphabetical order; where there are fewer than `k`
    different words, list all.
    """
    return sorted(set(words), key=lambda word: (-words.count(word), word))[:k]


@problem(
    1,
    (6, [5, 2, 8, 3]),
    (0, []),
    (0, [9, 7, 4]),
    (0, [3]),
    (4, [1, 5]),
    (5, [4, 9, 1, 3]),
)
def best_trade(prices: list[int]) -> int:
    """Return the most that can be gained by buying at one of `prices` and selling at a later one.

    Where nothing can be gained it is 0.
    """
    best = 0
    lowest = prices[0] if prices else 0
    for price in prices:
        lowest = min(lowest, price)
        best = max(best, price - lowest)
    return best


@problem(
    1,
    (3, [5, 1, 4, 6, 2]),
    (0, []),
    (1, [3]),
    (1, [2, 2, 2]),
    (4, [1, 2, 3, 4]),
    (2, [9, 8, 9]),
)
def longest_rise(numbers: list[int]) -> int:
    """Return the length of the longest stretch of neighbours in which each exceeds the last."""
    longest = length = 0
    for place, number in enumerate(numbers):
        length = length + 1 if place and number > numbers[place - 1] else 1
        longest = max(longest, length)
    return longest


@problem(
    3,
    ([0, 2, 1, 3], 4, [[0, 1], [2, 1], [1, 3]]),
    ([], 0, []),
    ([0, 1, 2], 3, []),
    (None, 2, [[0, 1], [1, 0]]),
    (None, 1, [[0, 0]]),
    ([2, 1, 0], 3, [[2, 1], [1, 0]]),
    ([0, 1], 2, [[0, 1], [0, 1]]),
)
def work_order(n: int, rules: list[list[int]]) -> list[int] | None:
    """Order the jobs 0 to n - 1 so that for each rule [a, b] job a comes before job b.

    Always do the job with the smallest number of those that may be done next. Return None where
    no order keeps all rules.
    """
    order: list[int] = []
    while len(order) < n:
        held = {after for before, after in rules if before not in order}
        ready = [job for job in range(n) if job not in order and job not in held]
        if not ready:
            return None
        order.append(ready[0])
    return order
