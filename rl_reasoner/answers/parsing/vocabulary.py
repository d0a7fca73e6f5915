"""The vocabulary of the lexer: commands, signs and words, with their meanings as tokens."""

from rl_reasoner.answers.tree import names

FUNCTIONS = names(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc asin acos atan sinh cosh"
    " tanh coth sech csch arcsinh arccosh arctanh asinh acosh atanh log ln lg exp max min gcd lcm"
    " det sqrt abs floor ceil arg Re Im sgn sign erf tg ctg arctg dim ker rank Var Cov"
)
ALIGNED = names("align aligned alignat alignedat gather gathered split eqnarray multline equation")
STYLE = names(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle"
    " textstyle limits nolimits mathstrut strut hfill hline"
    " nonumber boxed fbox beginboxed bf"
    " it rm scriptstyle mleft mright middle null relax ensuremath mathop mathrel mathbin mathord"
    " mathopen mathclose rule centering large Large small tiny normalsize"
)
TEXTS = names(
    "text textbf textit textrm textnormal textsf texttt mbox hbox mathrm mathbf mathit mathsf"
    " mathtt mathnormal boldsymbol bm pmb emph underline operatorname uline textup mathcal mathscr"
    " mathfrak textsc"
)
RELATIONS = {
    "le": "<=", "leq": "<=", "leqslant": "<=", "leqq": "<=", "ge": ">=", "geq": ">=",
    "geqslant": ">=", "geqq": ">=", "lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "approx": "~",
    "simeq": "~", "thickapprox": "~", "doteq": "~", "in": "in", "equiv": "=", "colon=": "=",
    "coloneqq": "=", "iff": "iff", "Leftrightarrow": "iff", "implies": "then", "sim": "like",
    "Rightarrow": "then", "to": "to", "rightarrow": "to", "longrightarrow": "to", "mapsto": "to",
    "notin": "notin", "subset": "sub", "subseteq": "sub", "cong": "like", "propto": "like",
    "perp": "perp", "parallel": "parallel",
}  # fmt: skip
PLAIN_COMMANDS = {
    "times": "*", "cdot": "*", "ast": "*", "div": "/", "lbrace": "\\{", "rbrace": "\\}",
    "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")", "vert": "|", "lvert": "|",
    "rvert": "|", "mid": "|", "Vert": "|", "lVert": "|", "rVert": "|", "colon": ":",
    "prime": "'", "slash": "/", "pmod": "pmod", "centerdot": "*", "bullet": "*",
    "langle": "\\<", "rangle": "\\>", "lang": "\\<", "rang": "\\>",
}  # fmt: skip
CONNECT = {"and": "and", "or": "or", "land": "and", "lor": "or", "wedge": "and", "vee": "or"}
CHINESE = {
    "和": "and", "或": "or", "与": "and", "及": "and", "或者": "or", "以及": "and", "且": "and",
    "并且": "and",
}  # fmt: skip
IN_WORDS = {"und": "and", "oder": "or", "et": "and", "ou": "or", "и": "and", "или": "or"}
ALIAS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom",
    "varnothing": "emptyset", "cbrt": "ucbrt", "infin": "infty", "degree": "circ", "smallsetminus":
    "setminus", "bigcup": "cup", "bigcap": "cap", "dots": "ldots", "cdots": "ldots", "dotsc":
    "ldots", "dotso": "ldots", "bmod": "mod", "iint": "int", "oint": "int", "dotsb": "ldots",
    "nicefrac": "frac", "sfrac": "frac", "widehat": "hat", "widetilde": "tilde", "bar": "overline",
    "overrightarrow": "vec",
}  # fmt: skip
SMALL_WORDS = names(
    "yes no odd all for the if is of any at by to as it an not but nor per its one two six ten so"
    " we be do he she his her red day may jan feb mar apr jun jul aug sep oct nov dec mon tue wed"
    " thu fri sat sun am pm st nd rd th non nan via sum true out off on up from each km old"
)
CONSTANTS = {**dict.fromkeys(("infinity", "infty", "oo", "Infinity", "inf"), "infty"), "mod": "mod"}

BASE_WORDS = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "twelve": 12, "sixteen": 16,
}  # fmt: skip
SIGNS = (
    ("<=", "rel", "<="), (">=", "rel", ">="), ("=<", "rel", "<="), ("=>", "rel", ">="),
    ("!=", "rel", "!="), ("<>", "rel", "!="), ("==", "rel", "="), ("**", "op", "^"),
    ("+/-", "cmd", "pm"), ("||", "sep", "or"), ("&&", "sep", "and"),
)  # fmt: skip
