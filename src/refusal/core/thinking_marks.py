"""The marks of thinking: which are known, and what their names say.

A mark is told by its form (`<name>`, `[name]`, `<|name|>`, `◁name▷`) and by the words of its name,
so that ones nobody listed are read too. Strong names can mean nothing else; weak ones (`analysis`,
`plan`) may be sections of an answer.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

STRONG = re.compile(
    r"think|thought|reasoning|reflect|scratch|monolog|soliloq|cot|chain of|deliberat|contemplat|ponder|introspect|"
    r"ruminat|musing|cogitat|inner (?:voice|dialog|speech|prefix|suffix|prompt)|self[ -]?talk"
)
WEAK = re.compile(
    r"analy|plan|rational|reason|brainstorm|working|inner|internal|private|hidden|consider|assess|strateg|review|mind|"
    r"process|notes|interpret|understand|evaluat|judg|policy|safety|check|draft|meditat|commentary"
)
ANSWER = re.compile(r"\b(?:final|answer|response|reply|output|solution|result|content|reponse)\b")
_BEGIN, _END = (
    {"begin", "start", "open", "on", "prefix", "bos"},
    {"end", "stop", "close", "off", "suffix", "eos", "finish"},
)
_HTML_NAMES = (
    "a abbr address article aside audio b blockquote body br button canvas caption cite code col "
    "dd del details dialog div dl doctype dt em embed fieldset figcaption figure footer form h1 "
    "h2 h3 h4 h5 h6 head header hr html i iframe img input ins kbd label legend li link main map "
    "mark math meta nav object ol option p pre progress q s samp script section select small span "
    "strong style sub summary sup svg table tbody td template text textarea tfoot th thead time "
    "title tr track u ul var video xml "
)
_HTML = frozenset(_HTML_NAMES.split())

MARK = re.compile(
    r"(?P<fence>```|~~~)|(?P<code>`[^`\n]{1,120}`)"
    r"|(?:<\|start\|>\w{0,20})?<\|channel\|>\s?(?P<channel>\w{0,20})[^<\n]{0,80}"
    r"(?:<\|constrain\|>\w{0,20})?(?:<\|message\|>)?"
    r"|(?P<message><\|(?:start|begin)\|>assistant(?:<\|(?:message|content)\|>)?|<\|end\|>|<\|call\|>)"
    r"|<(?:\|channel|unused94)>(?P<named>\w{1,20})\n?|(?P<named_end><channel\|>|<unused95>)"
    r"|<\|im_start\|>(?P<turn>think|answer)\b"
    r"|(?P<form><\||<｜|<|\[|◁|【|\{)(?P<slash>/?)(?P<name>[A-Za-z思][\w:.\- ▁]{0,30})"
    r"(?:\s\w{1,20}=[^<>\n]{0,80})?(?P<end>\|>|｜>|>|\]|▷|】|\})"
)
_CLOSING = {"<|": "|>", "<｜": "｜>", "<": ">", "[": "]", "◁": "▷", "【": "】", "{": "}"}
_FORMS = {"<|": "|", "<｜": "|", "◁": "|", "【": "["}


@dataclass(frozen=True)
class Mark:
    """``kind``: open, close, answer, end of answer, fence or code. ``named``: its words speak of
    thinking.
    """

    kind: str
    name: str = ""
    strong: bool = False
    form: str = "<"
    named: bool = True

    def ends(self, opened: "Mark") -> bool:
        """Whether this mark ends the thought that ``opened`` has begun."""
        if self.kind == "answer":
            return self.form == "|" and opened.form == "|"
        if opened.name == "channel":
            return self.name == "channel" and self.kind in ("open", "close")
        if self.kind == "close" and self.name == "channel":
            return opened.form == "|"
        return self.kind == "close" and self.name == opened.name


def mark_of(match: re.Match[str]) -> Mark | None:
    """What a match of `MARK` is; ``None`` if it is nothing of interest."""
    found = match.groupdict()
    if found["fence"]:
        return Mark("fence")
    if found["code"]:
        return Mark("code")
    if found["channel"] is not None:
        final = found["channel"] in ("final", "")
        return Mark("answer" if final else "open", "channel", not final, "|")
    if found["message"]:
        return Mark("close", "channel", False, "|")
    if found["named"]:
        return Mark("open", "named", True, "|")
    if found["named_end"]:
        return Mark("close", "named", True, "|")
    if found["turn"]:
        return (
            Mark("open", "think", True, "|")
            if found["turn"] == "think"
            else Mark("answer", form="|")
        )
    if not found["name"] or _CLOSING[found["form"]] != found["end"]:
        return None
    if found["form"] == "[" and match.string[match.end() : match.end() + 1] in ("(", ":"):
        return None  # a link
    return _by_name(found["name"], bool(found["slash"]), _FORMS.get(found["form"], found["form"]))


@lru_cache(maxsize=4096)
def _by_name(name: str, slash: bool, form: str) -> Mark | None:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_▁]+", " ", name).lower().split()
    end = slash or bool(_END.intersection(words))
    stem = " ".join(word for word in words if word not in _BEGIN | _END | {"of", "the"})
    strong = STRONG.search(stem) is not None or stem == "思考"
    if ANSWER.search(stem) and not strong:
        return Mark("end of answer" if end else "answer", form=form)
    named = strong or WEAK.search(stem) is not None
    if not stem or (not named and (form != "<" or stem in _HTML)):
        return None
    if re.search(r"think|thought", stem):
        stem = "think"
    return Mark("close" if end else "open", stem.removesuffix("s"), strong, form, named)


# A template's tokens, wherever they stand.
SPECIAL = re.compile(
    r"<\|[\w-]{1,40}\|>|<｜[^｜>\n]{1,40}｜>|</?s>|\[/?INST\]"
    r"|<(?:start|end)_of_turn>|<\|?(?:turn|channel)\|?>|<unused9[45]>"
)
ROLE = re.compile(
    r"\A\W*(?:assistant|response|answer|output|ai|bot|model)(?: response)?\s*(?:[:\n]|\Z)\s*", re.I
)
TURN_END = re.compile(
    r"<\|(?:im_end|eot_id|eot|endoftext|end_of_text|return)\|>|<｜end▁of▁sentence｜>|<end_of_turn>|</s>|<turn\|>"
)
_OTHER = r"(?:user|human|assistant|model|system|tool)"
ROLE_MARK = re.compile(
    rf"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|start\|>(?!assistant)|<\|turn>)({_OTHER})\b"
    r"(?:<\|end_header_id\|>|<\|message\|>)?"
    r"|<[|｜](user|human|assistant)(?:_token)?[|｜]>|(?<=\S)\s*\[INST\]",
    re.I,
)
# The next turn: a role by itself on a line, or the user's with a colon, after a sentence that has
# ended.
SPEAKERS = re.compile(r"(?i)user|human|assistant|instruction|\nmodel")
USER_LINE = re.compile(r"(?<=\S)[ \t]*\n\s*(?:[Uu]ser|[Hh]uman|USER|HUMAN)[ \t]*\n")
ASSISTANT_LINE = re.compile(r"\S\s*\n[ \t]*(?:[Aa]ssistant|ASSISTANT|model)[ \t]*(?:\n|\Z)")
NEXT_TURN = re.compile(
    r"(?<=[.!?…)\"'”’])\s*(?:user|human|assistant|\nmodel)[ \t]*\n\s*(?=\S)"
    r"|(?<=[.!?…)\"'”’])\s*\n\s*(?:#{1,4} ?)?[*\[]*(?:[Uu]ser|[Hh]uman|USER|HUMAN|Instruction)[*\]]*:[*\s]"
)
DIALOGUE = re.compile(r"(?im)^[>#*\[ ]*(?:user|human)[*\]]*:|(?<!\A)^[>#*\[ ]*assistant[*\]]*:")

# Harmony's channels when their special tokens were dropped: "analysisThe user …assistantfinalNo."
LOST_FINAL = re.compile(
    r"(?:(?<=\S)|\n|(?<=[.!?…]) )assistant\s?(?:(?:analysis|commentary)\s?)?final(?=[^\sa-z]|\s*\n|\s+[A-Z])"
)
LOST_CHANNEL = re.compile(
    r"\A\s*(?:assistant)?(analysis|commentary|final)"
    r"(?:(?=[A-Z\d\"'“‘(¡¿…*#])| to=\S+ |\s+(?=(?:The user|User|We|I|Need|Okay|Let) ))"
)

_THINKING = (
    r"(?:thinking|think(?=\n)|thoughts?|reasoning|chain[- ]of[- ]thought|scratch ?pad|"
    r"(?:inner|internal) (?:monologue|dialogue|thoughts?)|"
    r"monologue|reflections?|deliberations?|analysis|cot|plan|internal)"
    r"(?:[- ](?:process|steps?|trace|phase|aloud|out loud))?"
)
THOUGHT_HEADING = re.compile(
    r"\A(?:<\w{1,8}>|[^\w])*(?:(?:here (?:is|are)|here's) )?"
    r"(?:(?:my|the|some|model|private|internal|inner|hidden|step[- ]by[- ]step) )*"
    rf"{_THINKING}\b"
    r"(?: \([^)\n]{1,30}\))?[*_ \])=\-#]*(?:</\w{1,8}>)*"
    r"(?:[:.…]+[*_ \])]*(?:</\w{1,8}>)*|\n|(?<=\*\*)|(?<=\])|(?<=[-#]{3})|(?<=>))\s*",
    re.I,
)
ANSWER_HEADING = re.compile(
    r"(?:(?:^|\n)(?:<\w{1,8}>|[#>*_ \t\-=\[(])*|\*\*|__|(?<=[.!?)])\s*\[)"
    r"(?:(?:here (?:is|are)|here's|and) )?(?:(?:my|the|begin|actual|model) )*"
    r"(?:(?:final )?(?:answer|response|reply|output|verdict|message)(?: to (?:the )?user)?|final)"
    r"[*_ \])=\-#]*(?:[:.]+[*_ ]*(?:</\w{1,8}>)*|\n|(?<=\*\*)|(?<=\])|(?<=[-#]{3}))\s*"
    r"|(?:^|\n)[.… ]*done thinking[.… ]*\n|(?:^|\n)(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*\n",
    re.I,
)
END_HEADING = re.compile(r"\s*\[END [A-Z ]{1,30}\]\s*\Z")
WRAPPED = re.compile(
    r"\A(?:\*(?!\*)[^*\n][^*]{20,4000}\*(?!\*)\s*|\((?:[^()]|\([^()]*\)){20,4000}\)\s*|\[[^\[\]]{20,4000}\]\s*|(?:>[^\n]*\n)+\s*|<!--(?:(?!-->)[\s\S]){1,9000}-->\s*|<details>(?:(?!</details>)[\s\S]){1,9000}</details>\s*"
    r"|~~[^~]{20,4000}~~\s*|(?P<fence>```(?:think|thinking|thoughts?|reasoning|scratchpad|cot)[^\n]{0,20}\n(?:(?!\n```)[\s\S]){1,9000}\n```\s*))"
)

# What thoughts say, and answers do not: they speak of the user, of what should be written, of the
# rules for it.
_ASKS = r"(?:asks?|asked|asking|wants?|wanted|says|said|requests?|requested|requesting|seeks?|needs?|wrote|is|has|just)"
DELIBERATES = re.compile(
    rf"\b(?:the|this|our) user\b|\buser (?:{_ASKS})\b|\b(?:we|i) (?:should|must|need to|have to|ought to)\b|"
    r"\blet me (?:think|consider|see|check)\b|\b(?:disallowed|content policy|guidelines say|comply with policy)\b|"
    r"\bthe request\b|\bi'll (?:refuse|decline|answer|respond|comply)\b",
    re.I,
)
PLANS = re.compile(
    r"\b(?:we|i) (?:should|must|need to|have to|ought to|will|can)(?: not)? (?:\w+ )?(?:refuse|decline|answer|comply|"
    r"respond|reply|decide|help|say|provide|give|explain|avoid|be|make|produce|follow|check|consider|think|figure|handle|write)\b|"
    r"\blet me (?:think|consider|see|check)\b|\b(?:disallowed|content policy|comply with policy|must not help)\b|"
    r"\b(?:wait|hmm),",
    re.I,
)
OPENS_UNMARKED = re.compile(
    r"\A[^\w]*(?:(?:okay|ok|alright|all right|so|hmm+|well|first|right|now|let's see|let me (?:see|think))[,.:… ]+)*"
    rf"(?:(?:the|this|our) user(?:'s|’s)? |user )(?:\w+ ){{0,2}}?{_ASKS}\b"
    r"|\A(?:(?:okay|ok|alright|so|hmm+)[,. ]+)?we (?:need|have|must|should|are asked)\b(?: to)? (?:\w+ )?"
    r"(?:refuse|decline|answer|comply|respond|check|decide|produce|follow|consider)\b",
    re.I,
)
# Two sentences without a space between them: there was a mark.
GLUED = re.compile(
    r"(?<=[a-z]{2}[.!?…])(?=[A-Z][a-z]{1,20}[ ,.'’!]|I['’ ]|A |[*#])"
    r"|(?<=[a-z][.!?…][)\"”'’])(?=[A-Z][a-z]{1,20}[ ,'’]|I['’ ])"
)
