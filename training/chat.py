"""Turns entries into conversations: questions in several phrasings, answers in the docs' words."""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator

from entries import Blocks, Entry

Turn = tuple[str, str]
Asker = Callable[[Entry, random.Random], Turn | None]

DO = (
    "What does {n} do?",
    "What does {n} do?",
    "What does {n} do",
    "what does {n} do?",
    "What is {n}?",
    "What is {n} for?",
    "{n}",
    "{n}?",
    "What is the purpose of {n}?",
    "What does {n}() do?",
    "What does the {n} {k} do?",
    "What does {n} do in Python?",
    "Can you tell me what {n} does?",
    "What does `{n}` do?",
    "Summarize {n}.",
    "what is {n}",
)
EXPLAIN = (
    "Explain {n}.",
    "Explain {n}",
    "Tell me about {n}.",
    "Describe {n}.",
    "Document {n}.",
    "Explain `{n}` in detail.",
    "Explain how {n} works.",
    "How does {n} work?",
    "Give me the documentation of {n}.",
    "Can you explain {n}?",
    "Explain the {k} {n}.",
)
USE = (
    "How do I use {n}?",
    "Show an example of {n}.",
    "Show me how to use {n}.",
    "How to use {n}?",
    "Give an example of {n}.",
    "How do I call {n}?",
    "Show an example of {n}",
    "example of {n}",
    "Can you show me {n} in use?",
    "How is {n} used?",
    "Write an example that uses {n}.",
)
PARAMS = (
    "What are the parameters of {n}?",
    "What arguments does {n} take?",
    "Parameters of {n}?",
    "Which arguments does {n} accept?",
    "List the parameters of {n}.",
    "What can I pass to {n}?",
)
SIGNATURE = ("What is the signature of {n}?", "Signature of {n}?", "Show the signature of {n}.")
RETURNS = ("What does {n} return?", "What is the return value of {n}?", "what does {n} return")
WHICH = (
    "How do I {v}?",
    "How can I {v}?",
    "How do I {v} in Python?",
    "Which function can {v}?",
    "Which function should I use to {v}?",
    "I want to {v}.",
    "What can I use to {v}?",
)
WHERE = ("Which module has {b}?", "Where do I find {b}?", "Which module is {b} in?")
ERRORS = ("Which errors does {n} raise?", "What does {n} raise?", "When does {n} raise an error?")
VERB_LIST = (
    "add append apply build change check clear close compare compile compute convert copy count "
    "create decode delete determine dump encode escape evaluate execute extract fetch fill find "
    "format generate get insert invert iterate join list load lock look make map match merge "
    "move normalize open pack parse perform pop print process produce query raise read "
    "recursively register remove rename replace reset resolve retrieve reverse run search "
    "select send serialize set shuffle sort split start stop strip swap test transform truncate "
    "unpack update validate verify wait walk wrap write calculate combine concatenate connect "
    "disable enable"
)
VERBS = frozenset(VERB_LIST.split())


def sized(blocks: Blocks, limit: int, code: bool = False) -> str:
    """Return whole blocks up to about `limit` characters; always at least the first text."""
    kept: list[str] = []
    total = 0
    for kind, text in blocks:
        if kind == "code" and not code:
            if kept:
                break
            continue
        if re.match(r"^[\w.]+\(.*\)\s*-+>", text) and kind == "text":
            continue
        if kept and total + len(text) > limit:
            break
        text = clean(text) if kind == "text" else f"```python\n{text}\n```"
        if len(text) > 2 * limit:
            text = cut(text, 2 * limit)
        kept.append(text)
        total += len(text)
    answer = "\n\n".join(kept)
    return answer[:-1] + "." if answer.endswith(":") else answer


def clean(text: str) -> str:
    """Return prose with parameter names in backticks and footnote marks gone."""
    text = re.sub(r"(?<![\w*`])\*{1,2}([A-Za-z_][\w ]*?)\*{1,2}(?![\w*`])", r"`\1`", text)
    text = re.sub(r"\s*\[[#\w]+\]_|Deprecated since version [\d., ]*\d\.?\s*$", "", text)
    return re.sub(r"[ \t]{2,}", " ", text).strip() if "\n" not in text else text


def cut(text: str, limit: int) -> str:
    """Return `text`, if longer than `limit` only up to the last sentence that ends before it."""
    text = text.split("\n\n```")[0]
    if len(text) <= limit:
        return text
    end = text[:limit].rfind(". ")
    return text[: end + 1] if end > 40 else text[:limit].rsplit(" ", 1)[0]


def sentences(entry: Entry, wanted: str) -> str:
    """Return up to four sentences of the entry's text that match the pattern `wanted`."""
    text = " ".join(clean(t) for kind, t in entry.doc + entry.manual if kind == "text")
    seen = dict.fromkeys(re.split(r"(?<=[.!?])\s+(?=[A-Z`*])", text))
    return " ".join([s for s in seen if re.search(wanted, s) and len(s) < 400][:4])


def summary(entry: Entry) -> str:
    """Return the entry's short answer: its docstring first, else the reference."""
    text = sized(entry.doc, 480) if entry.doc else ""
    if len(text) < 60 and entry.manual:
        manual = sized(entry.manual, 480)
        text = manual if len(manual) > len(text) else text
    return text


def ask_do(entry: Entry, rng: random.Random) -> Turn | None:
    """Return a question about what the object does."""
    return _asked(DO, entry, rng, summary(entry))


def ask_explain(entry: Entry, rng: random.Random) -> Turn | None:
    """Return a request for the long description, listings included."""
    body = sized(entry.manual or entry.doc, 1300, code=True)
    head = f"```python\n{entry.signature}\n```\n\n" if "(" in entry.signature else ""
    return _asked(EXPLAIN, entry, rng, head + body if body else "")


def ask_use(entry: Entry, rng: random.Random) -> Turn | None:
    """Return a request for an example; the first listing of the docs, else the signature."""
    code = [text for kind, text in entry.manual + entry.doc if kind == "code" and len(text) < 900]
    code = [text for text in code if entry.name.rsplit(".", 1)[-1] in text]
    first = cut(summary(entry).split("\n\n")[0], 240)
    if code:
        return _asked(USE, entry, rng, f"{first}\n\n```python\n{code[0]}\n```")
    if "(" not in entry.signature or not entry.stdlib or len(entry.signature) > 240:
        return None
    answer = f"Call it as `{entry.signature}`. {first}"
    return _asked(USE, entry, rng, answer)


def ask_params(entry: Entry, rng: random.Random) -> Turn | None:
    """Return a question about the parameters, answered by list or by matching sentences."""
    if "(" not in entry.signature or len(entry.signature) > 500:
        return None
    head = f"`{entry.signature}`"
    if entry.params:
        body = "\n".join(f"- `{name}`: {cut(about, 200)}" for name, about in entry.params[:10])
        return _asked(PARAMS, entry, rng, f"{head}\n\n{body}")
    arguments = entry.signature[entry.signature.index("(") + 1 :].rstrip(")")
    names = [n for n in re.findall(r"[A-Za-z_]\w*(?=\s*[=,)\[]|\s*$)", arguments) if len(n) > 1]
    if not arguments.strip():
        return _asked(PARAMS, entry, rng, f"`{entry.name}` takes no arguments: {head}.")
    found = sentences(entry, "|".join(rf"`{n}`|\b{n} (is|argument|flag)" for n in names) or "$^")
    return _asked(PARAMS, entry, rng, f"{head}\n\n{found}" if found else "")


def ask_signature(entry: Entry, rng: random.Random) -> Turn | None:
    """Return a question about the signature."""
    if "(" not in entry.signature or len(entry.signature) > 300:
        return None
    return _asked(SIGNATURE, entry, rng, f"```python\n{entry.signature}\n```")


def ask_returns(entry: Entry, rng: random.Random) -> Turn | None:
    """Return a question about the return value."""
    if "(" not in entry.signature or entry.kind in {"class", "exception", "decorator"}:
        return None
    found = entry.returns or sentences(entry, r"^Returns?\b") or sentences(entry, r"\breturns?\b")
    return _asked(RETURNS, entry, rng, found)


def ask_errors(entry: Entry, rng: random.Random) -> Turn | None:
    """Return a question about the exceptions."""
    return _asked(
        ERRORS, entry, rng, sentences(entry, r"\braise[sd]?\b.*\w*(Error|Exception|Exit)")
    )


def ask_which(entry: Entry, rng: random.Random) -> Turn | None:
    """Return a question that the object is the answer to, made from its first sentence."""
    first = re.split(r"(?<=\.)\s", summary(entry))[0].rstrip(".")
    verb = first.split(" ")[0].lower()
    wordy = not 12 < len(first) < 110 or "`" in first or "\n" in first
    if verb == "return" and not wordy and entry.kind != "class":
        rest = "get " + first[7:]
    elif verb in VERBS and not wordy:
        rest = first[0].lower() + first[1:]
    else:
        return None
    question = rng.choice(WHICH).format(v=rest)
    call = entry.signature if "(" in entry.signature else entry.name
    call = call if len(call) < 160 else entry.name
    return question, f"Use `{call}`. {summary(entry)}"


def ask_where(entry: Entry, rng: random.Random) -> Turn | None:
    """Return a question about the module an object lives in."""
    owner, _, bare = entry.name.rpartition(".")
    if not owner or len(bare) < 4 or entry.kind not in {"function", "class", "decorator"}:
        return None
    first = cut(summary(entry).split("\n\n")[0], 200)
    what = "module" if entry.kind == "class" or owner[0].islower() else "class"
    return rng.choice(WHERE).format(b=bare), f"`{bare}` is in `{owner}` ({what}). {first}"


def ask_bare(entry: Entry, rng: random.Random) -> Turn | None:
    """Return a question that leaves the module out; the answer names it."""
    bare = entry.name.rsplit(".", 1)[-1]
    top = entry.name.count(".") == 1 + entry.name.startswith("os.path.")
    if not entry.stdlib or not top or len(bare) < 5 or entry.kind not in {"function", "class"}:
        return None
    forms = ("What does {b} do?", "What is {b}?", "What does `{b}` do?", "Explain {b}.", "{b}")
    return rng.choice(forms).format(b=bare), f"`{entry.name}`: {summary(entry)}"


def _asked(forms: tuple[str, ...], entry: Entry, rng: random.Random, answer: str) -> Turn | None:
    answer = answer.strip()
    if len(answer) < 10 or len(answer) > 3000:
        return None
    kind = {"data": "constant", "awaitablefunction": "function"}.get(entry.kind, entry.kind)
    kind = re.sub(r"^(coroutine|abstract|class|static|awaitable)(?=method|function)", "", kind)
    form = forms[0] if rng.random() < 0.25 else rng.choice(forms)
    return form.format(n=entry.name, k=kind), answer


ASKERS: tuple[tuple[Asker, int], ...] = (
    (ask_do, 5),
    (ask_explain, 3),
    (ask_use, 3),
    (ask_params, 2),
    (ask_signature, 1),
    (ask_returns, 2),
    (ask_which, 3),
    (ask_where, 1),
    (ask_errors, 1),
    (ask_bare, 1),
)


def conversations(entry: Entry, rng: random.Random, repeats: float) -> Iterator[list[Turn]]:
    """Yield conversations about one object: one question each, and a few of several turns."""
    turns: dict[str, list[Turn]] = defaultdict(list)
    for asker, count in ASKERS:
        asked: dict[str, Turn] = {}
        for _ in range(int(count * repeats + rng.random())):
            turn = asker(entry, rng)
            if turn:
                asked[turn[0]] = turn
        turns[asker.__name__] = list(asked.values())
        yield from ([turn] for turn in asked.values())
    start = turns["ask_do"] or turns["ask_explain"]
    follow = [turn for name in ("ask_use", "ask_params", "ask_returns") for turn in turns[name]]
    if start and follow and rng.random() < repeats * 0.5:
        chosen = rng.sample(follow, min(len(follow), rng.choice((1, 1, 2))))
        yield [rng.choice(start), *((_follow_up(q, entry), a) for q, a in chosen)]


def _follow_up(question: str, entry: Entry) -> str:
    return question.replace(f"`{entry.name}`", "it").replace(entry.name, "it")


def module_conversations(
    name: str, page: Blocks, members: list[Entry], rng: random.Random
) -> Iterator[list[Turn]]:
    """Yield conversations about a module: what it is and what it holds."""
    about = sized(page, 500)
    if len(about) > 20:
        forms = ("What is the {n} module?", "What is {n}?", "What is {n} for?", "Explain {n}.")
        more = ("What does the {n} module do?", "Tell me about the {n} module.", "{n}")
        for form in rng.sample(forms + more, 5):
            yield [(form.format(n=name), about)]
    kinds = {"function", "class", "decorator", "exception", "coroutinefunction"}
    listed = [e for e in members if e.kind in kinds and e.name.count(".") == name.count(".") + 1]
    if len(listed) >= 3:
        lines = [f"- `{e.name}`: {cut(summary(e), 90).rstrip('.')}" for e in listed[:12]]
        answer = f"Some of what `{name}` offers:\n\n" + "\n".join(lines)
        for form in ("What is in the {n} module?", "What functions are in {n}?", "List {n}."):
            yield [(form.format(n=name), answer)]
