"""Words that make another value of the number beside them: "at least 12", "12 doubled", 不到 12.

One table, a row for each language in which a cue is known; what is read behind a cue, in a box or
in a sentence asks it. Words of nearness ("about", "fast", "" 左右) change nothing, and neither do
words that say what is counted ("12 more apples", "12 times a week").
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Words:
    """The words of one language, as patterns.

    `bounds` and `changes` stand right before a value: a bound may also tell how many do something
    ("at least 17 of them are red"), a change never does. `compares` stands right behind it,
    `alters` behind it or what it counts. `denies` begins a sentence that denies what follows.
    """

    bounds: str
    changes: str
    compares: str
    alters: str
    denies: str


_ENGLISH = _Words(
    bounds=r"at (?:most|least)|(?:more|less|fewer|greater|larger|smaller|higher|lower) than"
    r"|(?<![a-z] )up to|over|under|(?<!shown )(?<!given )(?:above|below)|beyond|exceed(?:s|ing)",
    changes=r"not|isn'?t|never|no|twice|double|triple|thrice|half|minus|negative|non"
    r"|(?:half|third|quarter|fifth|tenth|root|square|cube|reciprocal|inverse|opposite|factorial"
    r"|negative|double|triple) of"
    r"|(?:twice|half|double|triple|times) as \w+ as|(?:other|different|rather) (?:than|from)"
    r"|(?:any|every|all)\w*(?: \w+)? (?:but|except|save)|except(?: for)?|excluding|unequal to"
    r"|far from|short of|(?:wrong|incorrect|false)(?:ly)?\s?:?",
    compares=r"(?:more|less|fewer|greater|larger|smaller|higher|lower) than|no\W*$|short of"
    r"|and (?:an? |one[ -])?(?:half|third|quarter)|mod(?:ulo)? \d|to the power"
    r"|(?:squared|cubed|factorial)\W*$",
    alters=r"(?:plus|minus) (?:another |an? )?{count}|times (?:{count}|itself)\W*$"
    r"|(?:doubled|tripled|quadrupled|halved|negated|inverted)"
    r"|(?:increased|decreased|reduced|raised|multiplied|divided|diminished)(?: (?:by|to)|\W*$)"
    r"|or (?:more|less|fewer|greater|higher|lower|above|below|over|under)|at (?:most|least)\W*$"
    r"|and (?:up|above|over|below|under|more)\W*$"
    r"|(?:(?:is|was|are|were|would be|seems) )?(?:wrong|incorrect|false|untrue|mistaken)"
    r"|(?:(?:is|was|are|were) not|(?:is|was|are|were)n ?'? ?t)"
    r"(?:\W*$| (?:the|my|our|it|an?)? ?(?:answer|right|correct|true|solution|it)\b)|not\W*$"
    r"|too (?:high|low|big|small|large|much|many|few|long|short)",
    denies=r"not|no longer|neither|never",
)
_GERMAN = _Words(
    bounds=r"mindestens|höchstens|wenigstens|(?:mehr|weniger|größer|kleiner|höher) als|über|unter"
    r"|oberhalb von|unterhalb von|bis zu",
    changes=r"nicht|kein(?:e[nrsm]?)?|nie(?:mals)?|minus|negativ|ungleich|alles außer|außer"
    r"|(?:hälfte|drittel|viertel|doppelte|dreifache|vierfache|quadrat|kehrwert|wurzel|\w+fache)"
    r" (?:von|aus|der|des)|doppelt so \w+ wie|halb so \w+ wie|zweimal|dreimal|verschieden von"
    r"|falsch\s?:?",
    compares=r"(?:mehr|weniger|größer|kleiner|höher) als",
    alters=r"(?:plus|minus|mal) {count}|verdoppelt|halbiert|verdreifacht|quadriert"
    r"|(?:erhöht|vermindert|multipliziert|geteilt) (?:um|mit|durch)|oder (?:mehr|weniger)"
    r"|mindestens\W*$|höchstens\W*$|(?:ist )?(?:falsch|nicht richtig|unrichtig)|(?:ist )?nicht\W*$"
    r"|hoch (?:zwei|drei|\d)",
    denies="nicht|weder",
)
_FRENCH = _Words(
    bounds=r"au (?:moins|plus|maximum|minimum)|(?:plus|moins) (?:de|que|grand que|petit que)"
    r"|(?:supérieure?|inférieure?) (?:ou égale? )?à|jusqu'à|au-dessus de|en dessous de",
    changes=r"pas|jamais|moins|négatif|non|tout sauf|sauf|autre que|différente? de|excepté"
    r"|(?:moitié|double|triple|quadruple|carré|cube|tiers|quart|opposé|inverse|racine(?: carrée)?)"
    r" de|(?:deux|trois) fois|faux\s?:?",
    compares=r"de (?:plus|moins) que|(?:plus|moins) que",
    alters=r"(?:plus|moins|fois) {count}|doublée?s?|triplée?s?|au (?:carré|cube)"
    r"|(?:augmenté|diminué|multiplié|divisé)e?s? (?:de|par)|ou (?:plus|moins)"
    r"|au (?:moins|plus)\W*$|(?:est |c'est )?(?:faux|fausse|incorrecte?)|n'est pas",
    denies=r"pas|ni",
)
_SPANISH = _Words(
    bounds=r"(?:al|por lo) menos|como (?:mínimo|máximo)|a lo sumo|(?:más|mas|menos) (?:de|que)"
    r"|(?:mayor|menor|superior|inferior) (?:que|a|de)|hasta|por (?:encima|debajo) de",
    changes=r"no(?: es)?|nunca|menos|negativo|todo menos|cualquier \w+ menos|excepto|salvo"
    r"|(?:distinto|diferente|otro) (?:de|a|que)|(?:dos|tres) veces|falso\s?:?"
    r"|(?:mitad|doble|triple|cuádruple|cuadrado|cubo|tercio|cuarto|opuesto|inverso"
    r"|raíz(?: cuadrada)?) de",
    compares=r"(?:más|mas|menos) que",
    alters=r"(?:más|mas|menos|por) {count}|duplicado|triplicado|al (?:cuadrado|cubo)"
    r"|(?:aumentado|reducido|multiplicado|dividido) (?:en|por|entre)|o (?:más|menos)"
    r"|(?:al|por lo) menos\W*$|como (?:mínimo|máximo)\W*$"
    r"|(?:es )?(?:falso|incorrecto|erróneo)|no es",
    denies=r"ni",
)
_ITALIAN = _Words(
    bounds=r"almeno|al (?:massimo|più|minimo)|(?:più|meno) di|(?:maggiore|minore) di|oltre|fino a",
    changes=r"non(?: è)?|meno|negativo|tutto tranne|tranne|eccetto|diverso da|(?:due|tre) volte"
    r"|(?:metà|doppio|triplo|quadrato|cubo|opposto|radice(?: quadrata)?) di",
    compares=r"(?:in )?(?:più|meno) (?:di|del|della)",
    alters=r"(?:più|meno|per) {count}|raddoppiato|dimezzato|al (?:quadrato|cubo)|o (?:più|meno)"
    r"|(?:è )?(?:sbagliato|errato|falso)|non è",
    denies="né",
)
_PORTUGUESE = _Words(
    bounds=r"pelo menos|no (?:mínimo|máximo)|(?:mais|menos) (?:de|do que|que)"
    r"|(?:maior|menor) (?:do )?que|acima de|abaixo de|até",
    changes=r"não(?: é)?|nunca|menos|negativo|tudo menos|exceto|diferente de|(?:duas|três) vezes"
    r"|(?:metade|dobro|triplo|quadrado|cubo|oposto|raiz(?: quadrada)?) de",
    compares=r"(?:a )?(?:mais|menos) (?:do )?que",
    alters=r"(?:mais|menos|vezes) {count}|dobrado|ao (?:quadrado|cubo)|ou (?:mais|menos)"
    r"|(?:está |é )?(?:errado|incorreto|falso)|não é",
    denies="nem",
)
_RUSSIAN = _Words(
    bounds=r"не (?:менее|более|меньше|больше|ниже|выше)|как минимум|максимум|минимум"
    r"|по меньшей мере|больше|меньше|более|менее|свыше|до",
    changes=r"не|минус|кроме|половина(?: от)?|удвоенное|вдвое больше|вдвое меньше",
    compares=r"(?:больше|меньше) чем",
    alters=r"(?:плюс|минус) {count}|неверно|неправильно|или (?:больше|меньше|более|менее)"
    r"|в квадрате|в кубе",
    denies="не",
)
_COUNTS = (
    "one|two|three|four|five|six|seven|eight|nine|ten|twelve|ein|eins|zwei|drei|vier|fünf|un|une|"
    r"deux|trois|quatre|uno|una|dos|tres|cuatro|due|tre|um|uma|dois|duas|três|один|два|три|[\d$]"
)
_WITH_SPACES = (_ENGLISH, _GERMAN, _FRENCH, _SPANISH, _ITALIAN, _PORTUGUESE, _RUSSIAN)
_CHINESE = _Words(
    bounds="至少|至多|最多|最少|起码|不(?:少|多|大|小|高|低)于|不?超过|不到|不足|不满|未满|[大小多少高低]于"
    "|最大不超过",
    changes="不是|并非|绝非|而非|不等于|不为|不可能是|除了?|负|非|[两二三四五六七八九十]倍的",
    compares="多(?![边项面少])|余|开外|加上?|减去?|乘以?|除以",
    alters="以上|以下|以外|的(?:一半|倒数|相反数|阶乘|[平立]方|[算术平立方]*根|一?[两二三四五六七八九十几多]倍"
    r"|\d+倍|[一二三四五六七八九十\d]+分之)|不对|不正确|[是为]?错|错误|不是(?:答案|正确|对|最终|\\W*$)",
    denies="不是|并非|并不是|不可能是",
)
_JAPANESE = _Words(
    bounds="少なくとも|多くとも|高々|最低でも|最大でも",
    changes="マイナス|負の",
    compares="以上|以下|未満|超|より",
    alters=r"の半分|の[二三四五\d]+倍|の[二三]乗|の平方|ではな|じゃな|でな|は間違|は誤",
    denies="いいえ",
)
_KOREAN = _Words(
    bounds="최소|최대|적어도|많아도",
    changes="마이너스|음수",
    compares="이상|이하|미만|초과|보다",
    alters="의 ?(?:절반|반|두 ?배|세 ?배|제곱)|[가이] ?아니|은 ?틀|는 ?틀",
    denies="아니",
)
_WITHOUT_SPACES = (_CHINESE, _JAPANESE, _KOREAN)

_OPENERS = r"[\s$*_({}\\]*$"  # between a word and its value
_CLOSERS = r"\A[\s$*_)}]*+"  # between a value and its word
_CONNECTED = r"(?:so|thus|therefore|hence|then|also|donc|因此|所以|故|于是|那么|,|，|\W)*"
_STATES = re.compile(
    r"\b(?:(?:are|is)(?! (?:the|my|our) \w*\s?(?:answer|solution))|were|was|have|has|had|will|can"
    r"|must|may|might|could|should|need|would|do|does|sind|ist|haben|sont|ont|est|son|están|sono"
    r"|são)\b|[是有为]",
    re.IGNORECASE,
)


def _either(field: str) -> str:
    """The words of all languages, those with spaces between them as whole words."""
    spaced = "|".join(getattr(words, field) for words in _WITH_SPACES)
    joined = "|".join(getattr(words, field) for words in _WITHOUT_SPACES)
    return rf"(?<!\w)(?:{spaced})(?!\w)|(?:{joined})".replace("{count}", f"(?:{_COUNTS})")


_BOUNDS = re.compile(rf"(?:{_either('bounds')}){_OPENERS}", re.IGNORECASE)
_BEFORE = re.compile(
    rf"(?:{_either('changes')}"
    r"|[<>≤≥≠±∓]=?|(?<!\d)!=|\\(?:le|ge|leq|geq|leqslant|geqslant|ne|neq|lt|gt|not|pm|mp))"
    rf"{_OPENERS}",
    re.IGNORECASE,
)
_COUNTED = (  # a word or two, none of which begins a clause
    r"(?:(?!(?:when|if|after|and|is|that|which|as|because|since|wenn|si|cuando)\s)[^\W\d_]++\s++)"
    r"{0,2}?[\u4e00-\u9fff]{0,3}?"
)
_BEHIND = re.compile(
    rf"{_CLOSERS}(?:\+(?!\s*\d)|!|{_either('compares')}"
    rf"|(?:[,，;—–-]\s*+)?{_COUNTED}(?:{_either('alters')}))",
    re.IGNORECASE,
)
_COMPARED = re.compile(rf"{_CLOSERS}(?:{_either('compares')})", re.IGNORECASE)
_REMARK = re.compile(rf"(?:{_either('compares')}|{_either('alters')})\W*", re.IGNORECASE)
_DENIED = re.compile(rf"\W*(?:{_either('denies')})(?=.*(?:[\d$\\]|\b[A-J]\b))", re.DOTALL)
_ONLY_CONNECTED = re.compile(_CONNECTED, re.IGNORECASE)
_LOOKED_AT = 80


def denied(sentence: str) -> bool:
    """Whether `sentence` begins by denying what follows: "not 13 but ..."."""
    return _DENIED.match(sentence) is not None


def changed_behind(text: str) -> bool:
    """Whether the words that begin `text`, right behind a value, make another value of it."""
    return _BEHIND.match(text[:_LOOKED_AT]) is not None


def changed_by_remark(words: str) -> bool:
    """Whether a remark in brackets behind a value is nothing else: `12 (at least)`."""
    return _REMARK.fullmatch(words.strip()) is not None


def changed_before(text: str) -> bool:
    """Whether the words that end `text`, right before a value, make another value of it."""
    last = text[-_LOOKED_AT:]
    return (_BEFORE.search(last) or _BOUNDS.search(last)) is not None


def changed(sentence: str, start: int, end: int) -> bool:
    """Whether the words around a part of `sentence` make another value of it.

    A bound does unless it tells how many do something ("at least 17 of them are red"), or stands
    in the middle of a sentence that goes on. A comparison does where it is all that is said: "the
    next one is 2 more than 12" says how many more.
    """
    before, after = sentence[:start].replace("*", "")[-_LOOKED_AT:], sentence[end:]
    bound = _BOUNDS.search(before)
    if bound and not re.search(r"[^\W\d_]", after):
        return True
    begins = _ONLY_CONNECTED.fullmatch(before[: bound.start() if bound else None]) is not None
    if bound and begins:
        return _STATES.search(after[:_LOOKED_AT]) is None
    compared = _COMPARED.match(after) is not None and not begins
    return (changed_behind(after) and not compared) or _BEFORE.search(before) is not None
