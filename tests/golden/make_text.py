"""Makes tests/golden/text: tokenizers, cleaned prompts, token ids and UMT5 encoders from the reference implementations.

Truth comes from the prompt_clean of diffusers' WanPipeline (ftfy 6.3.1 and html), tokenizers, sentencepiece, and
T5Tokenizer and UMT5EncoderModel of transformers.
Run:  python tests/golden/make_text.py   (fixed seeds; writes 1.5 MB)
"""
import io
import json
import os
import random
import shutil
import sys
import unicodedata

import sentencepiece
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel
from transformers.utils import logging

logging.set_verbosity_error()
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "text")

CORPUS = """
a rocket flies up over a blue background
a red car drives to the right on a green field
two cats bounce slowly while a dog spins around
the quick brown fox jumps over the lazy dog and the sun goes down
A slow cinematic shot of a city street at night, neon lights, rain, reflections; 4k, highly detailed.
an astronaut riding a horse on the moon, oil painting, 1234567890 stars!
Wikipedia is a free online encyclopedia, created and edited by volunteers around the world.
El niño comió una manzana pequeña mañana por la mañana, ¿verdad? ¡Sí!
Où est la bibliothèque? Le garçon déjà naïf a mangé des crêpes à Noël.
Die Katze läuft über die Straße, und die Vögel fliegen schön über dem Fluß.
Zażółć gęślą jaźń, proszę państwa. Příliš žluťoučký kůň úpěl ďábelské ódy.
Съешь ещё этих мягких французских булок, да выпей чаю. Ракета летит вверх.
Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.
一只猫在草地上奔跑，背景是蓝色的天空。火箭向上飞行。
色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止
猫が草の上を走っています。ロケットが青い空に飛んでいく。カタカナとひらがな。
고양이가 풀밭 위를 달리고 있습니다. 로켓이 하늘로 날아갑니다.
قطة تجري على العشب والسماء زرقاء. الصاروخ يطير عاليا.
חתול רץ על הדשא והשמיים כחולים.
बिल्ली घास पर दौड़ रही है। आसमान नीला है।
แมววิ่งบนหญ้า ท้องฟ้าสีฟ้า
Con mèo chạy trên cỏ, bầu trời màu xanh. Tên lửa bay lên trời.
😀 a smiling face 🚀 rocket ❤️ heart 👍 thumbs up 🐈 cat 🐶 dog
"""


def strings():
    """At least 200 prompts that exercise every corner of cleaning and tokenization. None holds NUL or surrogates."""
    lines = [line for line in CORPUS.strip().split("\n")]
    hand = [
        "", " ", "   ", "\t", "\n", "\u00a0", "\u3000", "\u200b", "\u200b \u200b", "\ufeff", "\u2028", " \t\r\n\v\f ",
        "a", "a cat", " a cat", "a cat ", "  a   cat  ", "a\tcat", "a\ncat\nruns", "a\r\ncat", "a\u00a0cat",
        "a\u3000cat", "a\u2003cat", "a\u200bcat", "a\u200ccat", "a\u200dcat", "a\u2060cat", "a\ufeffcat",
        "a\u00adcat", "a\x85cat", "a\x1ccat\x1d\x1e\x1fx", "a\u1680cat", "a\u180ecat", "a\u2028cat\u2029dog",
        "a\u202fcat\u205fdog", "▁", "▁▁", "▁a ▁cat", "a▁cat", "a ▁", " ▁ ", "a  ▁  b", "▁ ", " ▁a", "😀", "😀😀😀",
        "a 😀 cat", "👨‍👩‍👧‍👦", "👩🏽‍🚀 on the moon", "🏳️‍🌈", "🏴󠁧󠁢󠁷󠁬󠁳󠁿", "🇫🇷", "🇫🇷🇩🇪🇯🇵", "🇫", "❤️", "❤", "👍🏿", "1️⃣ 2️⃣",
        "©️ ®️ ™️", "☺️", "🚀🐈🐶", "a🚀b", "🫠🫶", "🧑‍⚕️", "♂️", "\u200d", "\ufe0f", "e\ufe0f", "一只猫", "猫", "火箭向上飞行",
        "我爱北京天安门", "龘靐齉", "𠮷野家", "色调艳丽，过曝", "中文 and English 混合", "猫が走る", "ﾈｺ", "ｶﾞｷﾞｸﾞ", "カタカナ ひらがな", "が", "か\u3099",
        "ハ\u309a", "㍿", "㌔", "㈱", "①②③", "Ⅳ ⅷ", "고양이", "고양이".encode("utf-8").decode("utf-8"), "\u1100\u1161",
        "\u1112\u1161\u11ab", "한\u0301글", "قطة", "الصاروخ يطير", "ﷺ", "ﻻ", "لا\u064b", "שָׁלוֹם", "חתול", "हिन्दी",
        "क़", "क\u093c", "क्षत्रिय", "แมว", "ำ", "é", "e\u0301", "café", "cafe\u0301", "CAFÉ", "ñ", "n\u0303", "ü",
        "u\u0308", "a\u0308\u0304", "ǟ", "ệ", "e\u0323\u0302", "e\u0302\u0323", "a\u0301\u0301", "o\u031b\u0323",
        "ö\u0323", "Å", "Å", "A\u030a", "q\u0307\u0323", "q\u0323\u0307", "\u0301", "\u0301a", " \u0301", "x\u20d0",
        "x\u20dd", "e\u0301\u20dd", "ſ", "ẛ\u0323", "ß", "ẞ", "İ", "ı", "ĳ", "ŉ", "ﬁ", "ﬂ", "ﬀ", "ﬃ", "ﬄ", "ﬅ", "ﬆ",
        "ﬁsh and ﬂowers", "ǆ Ǆ ǅ", "ŀ", "…", "‥", "¼ ½ ¾", "x²", "x₂", "№", "℃", "™", "ª º", "ＬＯＵＤ　ＮＯＩＳＥＳ", "ａｂｃ１２３",
        "！？", "￥", "ｅ\u0301", "Ａ\u0301", "１\u0308", "～", "｡｢｣", "￼", "�", "“curly” ‘quotes’", "it’s", "„low“",
        "«guillemets»", "ʼn", "—", "–", "-", "‐ ‑ ‒", "−", "·", "•", "†", "°", "¯", "´", "¨", "<unk>", "</s>",
        "<pad>", "<extra_id_0>", "<extra_id_9>", "a <extra_id_0> b", "a<extra_id_0>b", "<extra_id_", "</s",
        "<extra_id_0><extra_id_1>", "cat </s> dog", "</s></s>", " </s> ", "<unk> cat <unk>", "a <pad>", "<s>",
        "<0x41>", "<extra_id_1> ", "  <extra_id_1>  cat", "<mask>", "a<mask>b", "a <mask> b", "Hello<word>there",
        "Hello <word> there", "&amp;", "&lt;b&gt;", "&amp;amp;", "&amp;lt;", "caf&eacute;", "&#233;", "&#xe9;",
        "&#x1F680;", "&notit;", "&notin;", "&copy 2024", "&#128;", "&#0;", "&#x110000;", "&#xD800;", "&nosuch;", "&",
        "&;", "&#;", "&#x;", "a&b", "&#38;#233;", "<p>bold &eacute;</p>", "P&EACUTE;REZ", "&#146;quote", "&ampamp;",
        "&#12", "&NotEqualTilde;", "&#1;", "&#xFFFE;", "&#x80;", "&hellip;", "&nbsp;x", "x&nbsp;&nbsp;y", "&lt",
        "&LT", "&gtx", "&Aacute", "&aacutex", "&#65&#66;", "&#x41g", "&CounterClockwiseContourIntegral;",
        "&thetasym;", "&fjlig;", "&bne;", "&BNE;", "\x1b[31mred\x1b[0m", "\x1b[1;31mbold", "\x01\x02control\x7f",
        "a\x08b", "\u206aarabic\u206f", "\ufff9x\ufffb", "unaffordable",
        "internationalization of antidisestablishmentarianism", "CamelCaseWord", "snake_case_word",
        "http://example.com/path?query=1&x=2", "user@example.com", "3.14159", "1,000,000", "$100", "€50", "£20",
        "50%", "C++", "#1", "a.b.c", "...", "!!!", "(a [b] {c})", "\"quoted\"", "it's", "\\n", "~", "`code`",
        "tab\there", "A" * 50, "ab" * 40, "zzzzzzzzzzzzzzzzqqqqqqqqxxxxxxx", "ÿþý", "àáâãäå", "ÀÁÂÃÄÅ", "øæå", "Þórr",
        "đ", "ł", "ŵŷ", "ȘȚșț", "ŞŢ", "ʔ", "ɸ", "Ελληνικά", "Привет", "й", "и\u0306", "Ё", "українська ґ", "Հայերեն",
        "ქართული", "አማርኛ", "ᏣᎳᎩ", "ᠮᠣᠩᠭᠣᠯ", "𝒥𝓸𝒽𝓷", "𝟘𝟙", "𐍈", "\U000e0001", "\U0010ffff", "\ue000", "\ufdd0",
        "\u0378", "a\u0660\u0661", "\u2126", "\u212b", "\u1e9b", "\u0344", "\u0958", "\u0f73", "\u0f71\u0f72",
        "\ufb1d", "\ufb2c", "\u2adc", "\U0001d15e", "\u0340\u0341\u0343", "\u037e", "\u0387", "\u1fef",
        "x\u0301\u0307", "\u1100\u0301\u1161", "\u1a5e>eeea\ub39b", ">eeea", "eeee", "eeeee", "½x", "a½x½ x",
        "<sym>a<sym>", "oeeen", "plLxOnzxeeeeeF", "mkVeeea", "lbteeeb", "wWKeeeeer", "kafe\u0301 " * 12,
        "word " * 120, "猫" * 300, "a rocket, " * 100, "😀" * 100, "x" * 700, "\U000110bdA", "\u0600A", "\u0600\u0301",
        "\r\n", "a\r\n\u0301b", "\u0915\u094d\u0937", "\u0915\u0301", "\u0958\u0301", "ㄱㅏ", "\u0e33\u0301", "ä\u0301",
        "ｱ\u0301", "½\u0301", "\u00a8\u0301", "\u00b4\u0301", "\u2002\u0301", "\u3000\u0301", "\u00a0\u0301",
    ]
    return lines + hand


MOJIBAKE = [
    "âœ” No problems", "sÃ³", "voilÃ le travail", "Ã la mode", "l'humanitÃ©", "schÃ¶n", "Ã¼ber", "â€œquotedâ€\x9d",
    "â€œ like this â€�", "it\xe2\x80\x99s", "donâ€™t", "ðŸš€ rocket", "ðŸ˜€", "ä¸€åªçŒ«", "Ð Ð°ÐºÐµÑ‚Ð°", "Â£100",
    "Â©", "Â ", "a Â b", "Ã", "Â", "Ãƒ", "Å", "Ã¢â‚¬â„¢", "ÃƒÂ©", "schÃƒÂ¶n", "Ã\u0083Â©", "âˆš", "â„¢",
    "cafÃ© and café", "ÃŸ", "StraÃŸe", "â€¦", "â€”", "NaÃ¯ve", "Ä‡", "ÅŸ", "РџСЂРёРІРµС‚", "вЂ”", "Р°Р±РІ", "β€™",
    "ã\x81‚", "ã\x83\x84", "&macr;\\_(ã\x83\x84)_/&macr;", "\x93quoted\x94", "a\x96b", "\x80", "crÃ¨me brÃ»lÃ©e",
    "CrÃ¨me", "cr√®me", "‚Äôs", "it‚Äôs", "Ã  la carte", "Ã¡", "Ãºltimo", "às Ãs", "fÃ cil", "Ãquele",
    "Ã©tÃ© Ã  Paris", "â€™", "1 ×² 2", "œ", "œuvre", "Œ.", "“Ã©”", "Ã©\u2014Ã¨", "é€š", "ĀéÂ°", "Â°C", "20Â°C",
    "ÂµTorrent", "Â½", "Ë™", "Å“uvre", "Å’", "ï¬\x81sh", "ï¼¡", "ÙƒÙ„Ù…Ø©", "×©×œ×•×\x9d", "à¤¹à¤¿", "à¹\x81à¸¡à¸§",
    "í•œê¸€", "\ud55c".encode().decode("latin-1"), "ó¾®®", "Î•Î»Î»Î·Î½Î¹ÎºÎ¬", "ΓΏ", "Ã±andÃº Ã\xadndigo",
    "ÃƒÂ¡ and Ã¡", "Ã©\nplain é", "<b>Ã© &eacute;</b>", "&eacute; Ã©", "é Ã©", "日本 Ã©", "日本語 â€œqâ€\x9d x",
    "ã€Œæ—¥æœ¬èªžã€\x8d", "ã‚\xadãƒ£ãƒ³", "?Ã©", "Ã?", "Â? x Ã©", "Ã� et Ã©", "í\xa0½í¸\x80", "í ½í¸€", "À\x80",
    "Ã©À\x80", "Â«ÃeÂ»", "¿Quï¿½ pasa?", "ï¿½", "ï»¿text", "PokÃ©mon â„¢", "â–²â–¼", "âš¡ï¸\x8f", "â\x9d¤ï¸\x8f love",
    "L&AMP;AMP;ATILDE;&AMP;AMP;SUP3;PEZ", "RÃƒÂ©sumÃƒÂ©", "Ãâ€šÃ‚Â©", "ÃÂ¿", "Ă©", "ĂĽ", "Ĺ‚", "â‚¬", "â‚¬ 5",
    "5 â‚¬", "Ţ", "Г©", "ГЎ", "Ò", "¡Ã!", "Ãœ", "Ã–sterreich", "╬ô├▓", "┬╖", "├⌐t├⌐", "Γé¼", "ΓÇÖ", "â\x80\x93",
    "Ã\xa0", "áéíóú", "naïve café", "SÃO PAULO", "MÜNCHEN", "ÀÉÎÕÜ", "Ø£", "ØŸ Ø§Ù„", "Ã¦Ã¸Ã¥", "\u2122\u2030",
    "E-mail: fooâ„¢", "ÂÂ", "Â Â Â", "a\u00c2\u00a0b", "Ã¢\x80\x99", "n’Ã©tait", "\u00c3\u00a0\u00c3\u00a9", "¥Ã",
    "¶Ã©", "ßÃ", "éÉ£", "Ã© " * 60, "xâ€", "aß€b", "\u00e0\u00b2", "0°C Ã", "°Ã°", "Š°", "É°", "Œ", "Œx", "œ1", "«a»",
    "«é", "é»a", "é»é", "¢Ã", "ÑÂ", "Ñ‚", "Ð¢", "вЂ™", "Р’СЃРµ", "ГўВЂВ™ a", "āSame ā€", "ā€™", "\u0412\u00a0\u0412",
    "ВЃВ", "ВµВ", "ΒµΒ", "ΞµΞ", "Î‘Î", "ÃÃ©", "ÃÃÃÃ", "a ÃÃ b", "Ã©Ã", "Ã©Ã ", "Ã©Ã a", "Ã©Ã.",
]


def random_strings(count, seed):
    """Mixtures of what tends to matter, for differential testing beyond the hand-written list."""
    rng = random.Random(seed)
    pool = [c for s in strings() + MOJIBAKE for c in s]
    words = [w for s in strings() + MOJIBAKE for w in s.split(" ") if w and len(w) < 30]
    out = []
    for i in range(count):
        kind = i % 4
        if kind == 0:
            s = "".join(rng.choice(pool) for _ in range(rng.randint(1, 24)))
        elif kind == 1:
            s = " ".join(rng.choice(words) for _ in range(rng.randint(1, 8)))
        elif kind == 2:
            s = " ".join(rng.choice(words) for _ in range(rng.randint(1, 3)))
            try:
                s = s.encode("utf-8").decode(rng.choice(["latin-1", "cp1252", "cp1251", "mac_roman", "cp437"]))
            except UnicodeDecodeError:
                pass
            s += rng.choice(words)
        else:
            s = "".join(chr(rng.randint(0x80, 0x17F)) for _ in range(rng.randint(1, 8)))
        out.append(s.replace("\0", ""))
    return out


def train(name, **options):
    """A SentencePiece unigram model with T5's special pieces; returns the serialized ModelProto."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.strip().split("\n") * 20), model_writer=model, model_type="unigram",
        character_coverage=0.99, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>", eos_piece="</s>",
        unk_piece="<unk>", num_threads=1, hard_vocab_limit=False, minloglevel=2, **options)
    folder = os.path.join(ROOT, name)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "spiece.model"), "wb") as file:
        file.write(model.getvalue())
    return model.getvalue()


def small_rules():
    """A rule file with a few hundred NFKC rules: the full map is a quarter of a megabyte in each file that holds it."""
    rules = {}
    for code in list(range(0xA0, 0x250)) + list(range(0x1E00, 0x1F00)) + list(range(0xFF00, 0xFF70)) + [
            0x2026, 0x2122, 0x3000, 0xFB01, 0x958, 0xFDFA, 0x2460, 0x337F, 0x200B, 0xFEFF]:
        source = chr(code)
        target = {0x200B: " ", 0xFEFF: ""}.get(code, unicodedata.normalize("NFKC", source))
        for spelling in {source, unicodedata.normalize("NFD", source)}:
            if spelling != target:
                rules[spelling] = target
    path = os.path.join(ROOT, "rules.tsv")
    with open(path, "w", encoding="utf-8") as file:
        for source, target in sorted(rules.items()):
            file.write("\t".join(" ".join(f"{ord(c):X}" for c in side) for side in (source, target)) + "\n")
    return path


def spm_ids(blob, texts):
    processor = sentencepiece.SentencePieceProcessor(model_proto=blob)
    return [processor.encode(text) + [processor.piece_to_id("</s>")] for text in texts]


def pieces_of(blob):
    processor = sentencepiece.SentencePieceProcessor(model_proto=blob)
    return [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]


def charsmap_of(blob):
    from transformers.convert_slow_tokenizer import import_protobuf
    proto = import_protobuf().ModelProto()
    proto.ParseFromString(blob)
    return proto.normalizer_spec.precompiled_charsmap


def variant(blob, charsmap, byte_fallback, scheme, stripping):
    """A tokenizer.json as older converters wrote it for mT5 and UMT5: Precompiled, Strip, Replace, then Metaspace."""
    vocab = pieces_of(blob)
    extra = [(f"<extra_id_{i}>", 0.0) for i in range(9, -1, -1)]
    tokenizer = Tokenizer(models.Unigram(vocab + extra, unk_id=2, byte_fallback=byte_fallback))
    steps = [normalizers.Precompiled(charsmap)]
    if stripping:
        steps.append(normalizers.Strip(left=False, right=True))
    steps.append(normalizers.Replace(Regex(" {2,}"), "▁" if stripping else " "))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)])
    from tokenizers import AddedToken
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"] + [e[0] for e in extra[::-1]])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True)])
    tokenizer.add_tokens([AddedToken("<word>", single_word=True), AddedToken("Café", normalized=True)])
    return tokenizer


def make_tokenizers(texts):
    plain = train("plain", vocab_size=760, normalization_rule_name="nmt_nfkc",
                  user_defined_symbols=["<sym>", "猫が", "½x"])
    fallback = train("bytes", vocab_size=1000, normalization_rule_tsv=small_rules(), byte_fallback=True)
    os.remove(os.path.join(ROOT, "rules.tsv"))
    identity = train("identity", vocab_size=700, normalization_rule_name="identity", add_dummy_prefix=False,
                     remove_extra_whitespaces=False)
    small = charsmap_of(fallback)
    files = {}
    fast = T5Tokenizer.from_pretrained(os.path.join(ROOT, "plain"), extra_ids=10)
    fast.save_pretrained(os.path.join(ROOT, "scratch"))
    with open(os.path.join(ROOT, "scratch", "tokenizer.json"), encoding="utf-8") as file:
        files["t5.json"] = file.read()
    shutil.rmtree(os.path.join(ROOT, "scratch"))
    files["always_bytes.json"] = variant(fallback, small, True, "always", True).to_str()
    files["first.json"] = variant(plain, small, False, "first", False).to_str()
    files["never.json"] = variant(plain, small, True, "never", True).to_str()
    ids = {}
    for name, text in files.items():
        document = json.loads(text)
        with open(os.path.join(ROOT, name), "w", encoding="utf-8") as file:
            json.dump(document, file, ensure_ascii=False, separators=(",", ":"))
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        ids[name] = [tokenizer.encode(t).ids for t in texts]
        if name == "t5.json":
            assert ids[name] == [fast(t).input_ids for t in texts], "transformers and tokenizers disagree"
            assert all(fast(t, truncation=True, max_length=8).input_ids == (i if len(i) < 9 else i[:7] + i[-1:])
                       for t, i in zip(texts, ids[name])), "truncation is not what the C code takes it for"
    for name, blob in (("plain", plain), ("bytes", fallback), ("identity", identity)):
        ids[name + "/spiece.model"] = spm_ids(blob, texts)
    return ids


ENCODERS = {
    "sharded": dict(d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2, vocab_size=300,
                    relative_attention_num_buckets=32, relative_attention_max_distance=128),
    "wide_heads": dict(d_model=24, d_kv=12, num_heads=3, d_ff=40, num_layers=3, vocab_size=211,
                       relative_attention_num_buckets=16, relative_attention_max_distance=40),
    "bf16": dict(d_model=40, d_kv=4, num_heads=5, d_ff=72, num_layers=1, vocab_size=97,
                 relative_attention_num_buckets=8, relative_attention_max_distance=20),
    "f16_renamed": dict(d_model=48, d_kv=16, num_heads=4, d_ff=64, num_layers=2, vocab_size=150,
                        relative_attention_num_buckets=32, relative_attention_max_distance=200),
}
LENGTHS = (1, 7, 40, 200)


def make_encoders():
    """UMT5 encoders of random weights, saved by save_pretrained, and their outputs as the pipeline computes them."""
    all_ids = {}
    for seed, (name, sizes) in enumerate(ENCODERS.items()):
        torch.manual_seed(seed)
        config = UMT5Config(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0)
        model = UMT5EncoderModel(config).eval()
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "layer_norm" in key:
                    value.copy_(1 + 0.2 * torch.randn_like(value))
                elif "bias" in key or "shared" in key or "embed" in key:
                    value.copy_(torch.randn_like(value))
                else:
                    value.copy_(torch.randn_like(value) * value.shape[1] ** -0.5)
        folder = os.path.join(ROOT, "encoder_" + name)
        shutil.rmtree(folder, ignore_errors=True)
        dtype = {"bf16": torch.bfloat16, "f16_renamed": torch.float16}.get(name, torch.float32)
        model.to(dtype).save_pretrained(folder, max_shard_size="40KB" if name == "sharded" else "1GB")
        if name == "f16_renamed":
            path = os.path.join(folder, "model.safetensors")
            tensors = load_file(path)
            tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
            save_file(tensors, path, metadata={"format": "pt"})
        model = model.to(torch.float32)
        model.config._attn_implementation = "eager"
        outputs, all_ids[name] = {}, {}
        for length in LENGTHS:
            ids = torch.randint(0, sizes["vocab_size"], (1, length))
            padded = torch.cat([ids, torch.zeros(1, 9, dtype=torch.long)], dim=1)
            mask = (torch.arange(length + 9) < length).long()[None]
            with torch.no_grad():
                outputs[f"out_{length}"] = model(padded, mask).last_hidden_state[0, :length].contiguous()
            all_ids[name][str(length)] = ids[0].tolist()
        save_file(outputs, os.path.join(ROOT, f"encoder_{name}.safetensors"))
    write_json("encoder_ids.json", all_ids)


# An entity in capitals is unescaped only by ftfy, which leaves lines alone from the first "<" on.
HTML = ["&EACUTE;t&EACUTE;", "<b>&EACUTE;t&EACUTE;</b>", "&EACUTE; first\n<b>&EACUTE;</b>\n&EACUTE; last"]


def write_json(name, value):
    with open(os.path.join(ROOT, name), "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=True, separators=(",", ":"))


def main():
    os.makedirs(ROOT, exist_ok=True)
    make_encoders()
    if "encoder" not in sys.argv[1:]:
        texts = list(dict.fromkeys(strings() + MOJIBAKE + HTML))
        for text in texts:
            text.encode("utf-8")
        write_json("clean.json", [[t, prompt_clean(t)] for t in texts + random_strings(400, 7)])
        token_texts = list(dict.fromkeys(strings())) + random_strings(80, 11)
        write_json("ids.json", {"texts": token_texts, "ids": make_tokenizers(token_texts)})


if __name__ == "__main__":
    main()
