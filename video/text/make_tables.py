"""Writes the tables of video/text: unicode.inc, entities.inc and mojibake.inc.

Sources: unicodedata and html of the Python that runs this, grapheme properties of the `regex` package, and the
character categories and encodings of the `ftfy` package (Apache-2.0). Run:  python video/text/make_tables.py
"""
import html
import html.entities
import os
import re
import re._constants as constants
import re._parser as parser
import unicodedata

import regex
from ftfy import badness, chardata

HERE = os.path.dirname(os.path.abspath(__file__))
CODES = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def ranges(value_of):
    """[(first, last, value)] of the runs of code points whose value is not None."""
    runs = []
    for code in CODES:
        value = value_of(code)
        if value is None:
            continue
        if runs and runs[-1][1] == code - 1 and runs[-1][2] == value:
            runs[-1][1] = code
        else:
            runs.append([code, code, value])
    return runs


def emit(file, declaration, items):
    """A C array, packed into lines of at most 118 characters."""
    file.write(declaration + " = {\n")
    line = "   "
    for item in items:
        if len(line) + len(item) + 2 > 118:
            file.write(line + "\n")
            line = "   "
        line += " " + item + ","
    file.write(line + "\n};\n\n")


def member(pattern):
    compiled = regex.compile(pattern)
    return {c for c in CODES if compiled.match(chr(c))}


def write_unicode(file):
    classes = {}
    for name, pattern in (("PICTOGRAPH", r"\p{Extended_Pictographic}"), ("CONTROL", r"\p{GCB=Control}"),
                          ("EXTEND", r"\p{GCB=Extend}"), ("SPACING", r"\p{GCB=SpacingMark}"),
                          ("PREPEND", r"\p{GCB=Prepend}"), ("REGIONAL", r"\p{GCB=Regional_Indicator}"),
                          ("L", r"\p{GCB=L}"), ("V", r"\p{GCB=V}"), ("T", r"\p{GCB=T}"), ("CR", r"\r"), ("LF", r"\n"),
                          ("ZWJ", "\u200d")):
        classes.update(dict.fromkeys(member(pattern), name))
    table = ranges(classes.get)
    file.write("/* Grapheme cluster classes; Hangul syllables are computed. */\n")
    emit(file, "static const class_range grapheme_ranges[]", [f"{{0x{a:X},0x{b:X},GRAPHEME_{v}}}" for a, b, v in table])
    conjunct = dict.fromkeys(member(r"\p{InCB=Consonant}"), "CONSONANT")
    conjunct.update(dict.fromkeys(member(r"\p{InCB=Linker}"), "LINKER"))
    file.write("/* Consonants and linkers of Indic conjuncts. */\n")
    emit(file, "static const class_range conjunct_ranges[]",
         [f"{{0x{a:X},0x{b:X},CONJUNCT_{v}}}" for a, b, v in ranges(conjunct.get)])
    word = re.compile(r"\w")
    file.write("/* Letters, digits and underscores: what \\w matches. */\n")
    emit(file, "static const class_range word_ranges[]",
         [f"{{0x{a:X},0x{b:X},1}}" for a, b, _ in ranges(lambda c: 1 if word.match(chr(c)) else None)])
    file.write("/* Canonical combining classes other than 0. */\n")
    emit(file, "static const class_range combining_ranges[]",
         [f"{{0x{a:X},0x{b:X},{v}}}" for a, b, v in ranges(lambda c: unicodedata.combining(chr(c)) or None)])
    pairs = []
    for code in CODES:
        mapping = unicodedata.decomposition(chr(code))
        if mapping and not mapping.startswith("<"):
            parts = [int(p, 16) for p in mapping.split()] + [0]
            composes = unicodedata.normalize("NFC", chr(code)) == chr(code) and parts[1] != 0
            pairs.append((code, parts[0], parts[1], composes))
    file.write("/* Canonical decompositions {code point, first, second or 0}, sorted by code point. */\n")
    emit(file, "static const decomposition decompositions[]", [f"{{0x{c:X},0x{a:X},0x{b:X}}}" for c, a, b, _ in pairs])
    order = sorted((i for i, p in enumerate(pairs) if p[3]), key=lambda i: pairs[i][1:3])
    file.write("/* Those that also compose, as places in the table above, sorted by (first, second). */\n")
    emit(file, "static const uint16_t compositions[]", [str(i) for i in order])
    file.write("/* Halfwidth and fullwidth forms from U+FF5F on, {first, second or 0}; {0, 0} stays. */\n")
    wide = []
    for code in range(0xFF5F, 0xFFF0):
        normal = unicodedata.normalize("NFKC", chr(code))
        assert len(normal) <= 2
        wide.append("{0,0}" if normal == chr(code) else "{0x%X,0x%X}" % tuple(([ord(c) for c in normal] + [0])[:2]))
    emit(file, "static const uint16_t width_forms[][2]", wide)


def c_string(text):
    plain = set(range(32, 127)) - set(b'"\\?')
    return '"' + "".join(chr(b) if b in plain else "\\%03o" % b for b in text.encode()) + '"'


def write_entities(file):
    table = sorted(html.entities.html5.items(), key=lambda item: item[0].encode())
    assert max(len(name) for name, _ in table) <= 32 and max(len(text.encode()) for _, text in table) <= 7
    file.write("/* HTML5 entity names and their text, sorted by name; some stand without a semicolon, too. */\n")
    emit(file, "static const entity entities[]", [f"{{{c_string(name)}, {c_string(text)}}}" for name, text in table])
    upper = {}
    for name, text in table:
        if name.endswith(";") and name == name.lower() and text != text.upper():
            upper[text] = text.upper()
    assert max(len(t.encode()) for pair in upper.items() for t in pair) <= 7
    file.write("/* Entity texts that upper-casing changes. */\n")
    emit(file, "static const entity upper_texts[]",
         [f"{{{c_string(a)}, {c_string(b)}}}" for a, b in sorted(upper.items(), key=lambda item: item[0].encode())])


SPACE, WORD = re.compile(r"\s"), re.compile(r"\w")


def contains(node, code):
    """Whether one element of a parsed regular expression matches one character."""
    kind, value = node
    char = chr(code)
    if kind is constants.LITERAL:
        return code == value
    if kind is constants.NOT_LITERAL:
        return code != value
    if kind is constants.ANY:
        return char != "\n"
    if kind is constants.RANGE:
        return value[0] <= code <= value[1]
    if kind is constants.CATEGORY:
        return bool({constants.CATEGORY_SPACE: SPACE, constants.CATEGORY_WORD: WORD}[value].match(char))
    if kind is constants.IN:
        negated = value and value[0][0] is constants.NEGATE
        return any(contains(item, code) for item in value if item[0] is not constants.NEGATE) != bool(negated)
    raise ValueError(node)


def sequences(parsed):
    """Alternatives of a parsed pattern as lists of (anchored at the start, [element, ...])."""
    lists = [(False, [])]
    for node in parsed:
        kind, value = node
        if kind is constants.BRANCH:
            lists = [(a or c, x + y) for a, x in lists for option in value[1] for c, y in sequences(option)]
        elif kind is constants.MAX_REPEAT:
            low, high, inner = value
            lists = [(a, x + list(inner) * n) for a, x in lists for n in range(low, high + 1)]
        elif kind is constants.AT:
            lists = [(True, x) for _, x in lists]
        elif kind is constants.SUBPATTERN:
            lists = [(a or c, x + y) for a, x in lists for c, y in sequences(value[3])]
        else:
            lists = [(a, x + [node]) for a, x in lists]
    return lists


def write_mojibake(file):
    rules = sequences(parser.parse(badness.BADNESS_RE.pattern, re.VERBOSE))
    clue_names = ["utf8_" + name for name in ("first_of_2", "first_of_3", "first_of_4", "continuation",
                                              "continuation_strict")]
    clues = [parser.parse("[" + chardata.UTF8_CLUES[name] + "]")[0] for name in clue_names]
    elements = {str(node): node for _, nodes in rules for node in nodes}
    elements.update({str(node): node for node in clues})
    elements = list(elements.values())
    # Only these can be told apart by an explicit set; every other character is a word character, a space, or neither.
    named = sorted({c for c in range(0x10000) if not 0xD800 <= c < 0xE000 and any(
        contains(node, c) for node in elements if node[0] is not constants.ANY and "NEGATE" not in str(node)
        and "CATEGORY" not in str(node))} | set(range(128)))
    others = {"CLASS_OTHER": 0x2603, "CLASS_OTHER_WORD": 0x4E00, "CLASS_OTHER_SPACE": 0x2003}
    assert not set(others.values()) & set(named)
    signature = {c: tuple(contains(node, c) for node in elements) for c in named + list(others.values())}
    distinct = dict.fromkeys([signature[c] for c in others.values()] + list(signature.values()))
    kinds = {s: i for i, s in enumerate(distinct)}
    assert len(kinds) <= 128, len(kinds)
    mask = {str(node): sum(1 << i for s, i in kinds.items() if s[k]) for k, node in enumerate(elements)}
    def words(name):
        return f"{{0x{mask[name] & (2**64 - 1):X}u, 0x{mask[name] >> 64:X}u}}"

    file.write("/* Classes of characters that occur in mojibake; the rules below tell them apart. */\n")
    file.write("enum { " + ", ".join(f"{name} = {kinds[signature[c]]}" for name, c in others.items()) + " };\n\n")
    runs = []
    for code in named:
        kind = kinds[signature[code]]
        if runs and runs[-1][1] == code - 1 and runs[-1][2] == kind:
            runs[-1][1] = code
        else:
            runs.append([code, code, kind])
    emit(file, "static const class_range mojibake_ranges[]", [f"{{0x{a:X},0x{b:X},{v}}}" for a, b, v in runs])
    file.write("/* Sequences of classes (bit sets) that good text does not hold. */\n")
    longest = max(len(nodes) for _, nodes in rules)
    assert longest <= 7
    emit(file, "static const badness_rule badness_rules[]",
         [f"{{{int(anchored)}, {len(nodes)}, {{" + ", ".join(words(str(n)) for n in nodes) + "}}"
          for anchored, nodes in rules])
    file.write("/* What lead bytes of 2, 3 and 4 byte sequences and continuation bytes look like when misread. */\n")
    for name, node in zip(clue_names, clues):
        file.write(f"static const class_set {name} = {words(str(node))};\n")
    file.write("\n/* Bytes 0x80 to 0xFF of the encodings that mojibake comes from, in the order of trying. */\n")
    emit(file, "static const charmap charmaps[]", [
        "{%d, %d, {%s}}" % (e.startswith("sloppy"), e != "macroman",
                            ", ".join("0x%X" % ord(c) for c in bytes(range(128, 256)).decode(e)))
        for e in chardata.CHARMAP_ENCODINGS])
    emit(file, "static const uint16_t windows_1252_c1[32]",
         ["0x%X" % ord(c) for c in bytes(range(128, 160)).decode("sloppy-windows-1252")])
    emit(file, "static const ligature ligatures[]",
         ["{0x%X, {%s}}" % (code, ", ".join("0x%X" % ord(c) for c in text))
          for code, text in sorted(chardata.LIGATURES.items())])


def main():
    for name, write in (("unicode", write_unicode), ("entities", write_entities), ("mojibake", write_mojibake)):
        with open(os.path.join(HERE, name + ".inc"), "w", encoding="ascii") as file:
            file.write("/* Made by make_tables.py; do not edit. */\n\n")
            write(file)


if __name__ == "__main__":
    main()
