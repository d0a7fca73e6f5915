"""A program with classes and exceptions of its own, of the kinds that tests use."""

CLASSES = """
import math
class V:
    def __init__(self, x, y): self.x, self.y = x, y
    def __abs__(self): return math.hypot(self.x, self.y)
    def __float__(self): return float(abs(self))
    def __int__(self): return int(abs(self))
    def __complex__(self): return complex(self.x, self.y)
    def __round__(self, n=None): return 7 if n is None else 7.1
    def __floor__(self): return 5
    def __bool__(self): return bool(self.x or self.y)
    def __index__(self): return self.x
    def __neg__(self): return V(-self.x, -self.y)
    def __pos__(self): return V(self.x, self.y)
    def __invert__(self): return V(self.y, self.x)
    def __str__(self): return f"<{self.x}, {self.y}>"
    def __repr__(self): return f"V({self.x}, {self.y})"
    def __format__(self, spec): return f"<{self.x:{spec}}, {self.y:{spec}}>"
    def __add__(self, o): return V(self.x + o.x, self.y + o.y)
    def __radd__(self, o): return self if o == 0 else NotImplemented
    def __sub__(self, o): return V(self.x - o.x, self.y - o.y)
    def __mul__(self, k): return V(self.x * k, self.y * k)
    __rmul__ = __mul__
    def __matmul__(self, o): return self.x * o.x + self.y * o.y
    def __truediv__(self, k): return V(self.x / k, self.y / k)
    def __floordiv__(self, k): return V(self.x // k, self.y // k)
    def __mod__(self, k): return V(self.x % k, self.y % k)
    def __divmod__(self, o): return V(self.x // o.x, self.y // o.y), V(self.x % o.x, self.y % o.y)
    def __pow__(self, k): return V(self.x ** k, self.y ** k)
    def __lt__(self, o): return abs(self) < abs(o)
    def __le__(self, o): return abs(self) <= abs(o)
    def __getitem__(self, i): return [self.x, self.y][i]
    def __setitem__(self, i, v): setattr(self, "xy"[i], v)
    def __len__(self): return 2
class Stack:
    def __init__(self): self.items = []
    def __iadd__(self, item):
        self.items.append(item)
        return self
    def __delitem__(self, i): del self.items[i]
class Open:
    open = False
    def __enter__(self):
        self.open = True
        return self
    def __exit__(self, kind, error, trace):
        self.open, self.seen = False, kind and (kind.__name__, error.short)
        return bool(kind)
class Problem(ValueError):
    level = "high"
class Overdrawn(Problem):
    def __init__(self, short):
        super().__init__(short)
        self.short = short
    def __str__(self): return f"{self.short} short"
    def half(self): return self.short / 2
def fails(n): raise Overdrawn(n)
def catches(g):
    try: g()
    except Overdrawn as error: return error.short
    except KeyError as error: return type(error).__name__, error.args
def f(x): return x
"""
