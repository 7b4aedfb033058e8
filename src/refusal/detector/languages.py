"""Refusals in other languages: in one sentence, a negated "I can" or "I will", and a word for helping or for the request.

Both are needed: "I cannot come on Saturday" is a letter, "I cannot help with that" a refusal. Patterns are normalised
as the texts are (`plain_text`: NFKC, lower case, nothing invisible). Written from knowledge of the languages.
"""

import re
import unicodedata

_NO_AND_HELP: dict[str, tuple[str, str]] = {
    "de": (
        r"\b(?:kann|können|könnte|darf|möchte|werde|will)\b.{0,60}\b(?:nicht|kein\w*|nichts)\b|\bnicht (?:in der lage|möglich|"
        r"bereit|befugt)|\blehne\b.{0,60}\bab\b|\b(?:muss|möchte)\b.{0,60}\bablehnen",
        r"helf|hilf|unterstütz|auskunft|auskünfte|anleitung|informationen|beantwort|anfrage|ersuchen|assist|bereitstell|"
        r"\bgeben\b|erklär|\bdien(?:en|lich)|\bdabei\b|\bdamit\b|\bdarauf\b|ablehn|\blehne\b|beschreib|verrat|nachkommen|erfüll",
    ),
    "nl": (
        r"\b(?:kan|kunnen|mag|zal|wil|ga|ben)\b.{0,50}\b(?:niet|geen|niets)\b|\bniet in staat|\bweiger\b|\bmoet\b.{0,40}\bweigeren",
        r"help|assist|ondersteun|verstrek|beantwoord|antwoord geven|verzoek|instructies|informatie|uitleg|\bbieden|\bgeven\b|"
        r"daarbij|hiermee|daarmee|hierbij|daarover|beschrijv|weiger",
    ),
    "sv": (
        r"\b(?:kan|får|vill|tänker|kommer)\b.{0,40}\b(?:inte|ej|inga|ingen|inget)\b|\binte (?:möjligt|i stånd)|avböj\w+|vägrar",
        r"hjälp|assist|bistå|\bge (?:dig|instruktion|information|råd|ut)|besvara|\bsvara på|begäran|förfrågan|instruktion|"
        r"förklar|beskriv|med det\b|avböj|vägrar",
    ),
    "da, no": (
        r"\b(?:kan|vil|må|kommer)\b.{0,40}\b(?:ikke|ingen|ikkje)\b|\bnekter\b|\bafviser\b|\bavslår\b",
        r"hjelp|hjælp|assister|bistå|besvar|\bsvare på|forespør|anmod|instruk|informasjon|information|forklar|beskriv|"
        r"\bgi (?:deg|råd)|\bgive (?:dig|råd)|med (?:det|dette)\b|nekter|afviser|avslår",
    ),
    "fr": (
        r"\bne (?:pas |rien )?pouvoir\b|\bje (?:ne|n')\s?(?:\w+ )?(?:peux|puis|suis|pourrai|pourrais|vais|saurais|veux|souhaite|dois)\b|\bje (?:refuse|décline)\b|"
        r"\bdois (?:refuser|décliner)|pas en mesure|(?:m'est|est) (?:pas possible|impossible)|\bnous ne pouvons",
        r"aider|assister|fournir|répondre à (?:ce|cette|votre|ta)|donner|demande|expliquer|satisfaire|requête|instructions|"
        r"informations|faire (?:cela|ça)|décrire|participer|refus|décline|renseigner|accompagner|soutenir|partager|à ce sujet",
    ),
    "es": (
        r"\b(?:lamento|siento) (?:mucho )?no poder|\bno (?:\w+ )?(?:puedo|podré|podría|podemos|voy a|debo|quiero|me es posible|estoy (?:en condiciones|capacitad|"
        r"autorizad|programad|dispuest)|soy capaz|tengo permitido|es posible)|\bme niego\b|\b(?:debo|tengo que) (?:rechazar|"
        r"declinar|negarme)|\bincapaz de",
        r"ayud|asistir(?:te|le|los)?\b(?! (?:a|al|mañana|hoy|el)\b)|asistencia|proporcion|cumplir|ofrec|brind|respond|\bdar(?:te|le|les)?\b|"
        r"solicitud|petición|explic|facilit|compartir|instrucci|información|hacer eso|con eso|describ|niego|negarme|rechazar|declinar",
    ),
    "pt": (
        r"\b(?:lamento|sinto) (?:muito )?(?:por )?não poder|\bnão (?:\w+ )?(?:posso|poderei|podemos|consigo|vou|devo|quero|sou capaz|estou (?:autorizad|apt|em condições|programad|"
        r"dispost)|me é possível|é possível)|\brecuso|\b(?:devo|tenho (?:que|de)|preciso) recusar|incapaz de",
        r"ajud|fornec|atender|respond|auxili|explic|esse pedido|este pedido|seu pedido|solicitação|compartilh|partilh|instruç|"
        r"informaç|oferec|descrev|\bdar\b|com isso|fazer isso|\brecus|prestar",
    ),
    "it": (
        r"\b(?:dispiace|spiacente) (?:di )?non poter|\bnon (?:\w+ )?(?:posso|potrei|possiamo|sono in grado|riesco|mi è possibile|è possibile|intendo|voglio|sono (?:autorizzat|"
        r"programmat|dispost))|\bmi rifiuto|\bdevo (?:rifiutare|declinare)|impossibilitat",
        r"aiut|fornir|assist|risponder|soddisf|spiegar|richiesta|istruzioni|informazioni|\bdar(?:ti|vi|le|e)\b|offrir|descriv|"
        r"condivid|con questo|farlo|supporto|rifiut|declinar|accontentar",
    ),
    "pl": (
        r"\bnie (?:mogę|możemy|będę|jestem w stanie|zamierzam|chcę|wolno mi|mam możliwości|potrafię|podam|pomogę|udzielę)|\bodmawiam|"
        r"\bmuszę odmówić",
        r"pomó|pomoc|pomag|pomog|udziel|spełni|dostarcz|odpowied|wyjaśni|instrukc|informacj|prośb|realiz|opis|\bpoda|wspier|"
        r"zrobić|odm[aó]wi|wytłumacz",
    ),
    "cs, sk": (
        r"\bnemohu|nemůžu|nemůžeme|nemôžem|nebudu|nebudem|nesmím|nejsem schop|nie som schopn|odmítám|odmietam|musím odm[ií]e?tnout|"
        r"není možné|nepomohu|neposkytnu",
        r"pomo[czh]|pomôc|pomáh|poskyt|odpov[ěe]|vysv[ěe]tl|žádost|žiados|požadav|informac|návod|splnit|splniť|vyhov|s tím|s tým|"
        r"popis|asist|odm[ií]",
    ),
    "ro": (
        r"\bnu (?:(?:te|vă|îți|pot) )?(?:pot|putem|voi|sunt în măsură|am voie|doresc|am posibilitatea)|\brefuz\b|trebuie să refuz|"
        r"imposibil să",
        r"ajut|asist|ofer|furniz|răspund|explic|cerere|solicit|informați|instrucțiuni|descri|cu asta|cu acest|refuz|împărtăș",
    ),
    "hu": (
        r"\bnem (?:\w+ )?(?:tudok|tudom|tudunk|áll módomban|vagyok képes|segíthetek|segítek|adhatok|fogok|szabad|lehetséges|"
        r"válaszolhat|teljesíthet|írhat|vagyok hajlandó)|visszautasít|elutasít|meg kell tagadn",
        r"segít|támogat|válaszol|teljesít|információ|utasítás|kérés|útmutat|magyaráz|írhat|adhatok|ebben|utasít|tagadn|leír",
    ),
    "fi": (
        r"\ben (?:valitettavasti |ikävä kyllä )?(?:voi|pysty|aio|saa|halua|kykene|suostu|pysty)|kieltäyd|joudun kieltäyty",
        r"autta|avusta|neuvo|vasta(?:ta|a\b|uks)|pyyntö|pyynnö|tieto|ohje|selit|kuvai|\banta|tarjo|tässä|siinä|toteutt|kieltäy",
    ),
    "tr": (
        r"\w(?:amam|emem|amıyorum|emiyorum|amıyoruz|emiyoruz|amayız|emeyiz|amayacağım|emeyeceğim|mayacağım|meyeceğim)\b|"
        r"mümkün değil|reddediyorum|reddetmek|reddetmem",
        r"yard[ıi]m|yerine getir|sağla|bilgi ver|cevap|yanıt|açıkla|istek|isteğ|talep|talebi|karşıla|paylaş|bilgi|talimat|"
        r"(?:bu|o) konuda|destek|anlat|redd|bunu yap",
    ),
    "ru": (
        r"\bне (?:\w+ )?(?:могу|можем|буду|смогу|в состоянии|имею права|стану|готова?|вправе|хочу|намерена?|сможем)\b|\bотказываюсь|"
        r"\bвынужден\w* отказать|\bневозможно",
        r"помо[чг]|помощ|предостав|ответ|выполн|объясн|инструкц|информаци|запрос|просьб|содейств|описа|описы|\bдать\b|"
        r"давать|рассказ|поддерж|с этим|отказ|подсказ|делиться|обсужда",
    ),
    "uk": (
        r"\bне (?:\w+ )?(?:можу|можемо|буду|зможу|маю права|в змозі|хочу|готов\w*|надам|стану)\b|\bвідмовляюс|\bмушу відмов|"
        r"\bзмушен\w* відмов|неможливо",
        r"допомо[гжч]|допомаг|нада[тмв]|відпові|викона|поясн|інструкц|інформаці|запит|проханн|сприя|опис|\bдати\b|розпов|"
        r"з цим|відмов",
    ),
    "bg": (
        r"\bне (?:\w+ )?(?:мога|можем|бих|съм в състояние|желая|е възможно)\b|\bняма да\b|\bотказвам|\bтрябва да откажа|\bневъзможно",
        r"помогн|помощ|помага|предостав|отговор|изпълн|обясн|инструкц|информаци|искан|молбата|съдейств|опиш|\bдам\b|"
        r"разкаж|с това|отказ|откаж|насок",
    ),
    "hr, sr": (
        r"\bne (?:mogu|možemo|smijem|smem|želim)\b|\bneću\b|\bodbijam|\bmoram odbiti|\bnisam u mogućnosti|\bne mogu",
        r"pomo[ćgz]|pomag|pruži|odgovori|objasni|zahtjev|zahtev|informacij|uput|ispuni|opis|s tim\b|sa tim\b|odbij|odbiti",
    ),
    "el": (
        r"\bδεν (?:\w+ )?(?:μπορώ|μπορούμε|θα|είμαι σε θέση|έχω τη δυνατότητα|επιτρέπεται|γίνεται|είναι δυνατόν?)|\bαρνούμαι|αδυνατώ|"
        r"πρέπει να αρνηθώ",
        r"βοηθ|παρέχ|παράσχ|απαντ|εξηγ|αίτημα|οδηγί|πληροφορ|ικανοποι|δώσω|συνδράμ|υποστηρ|περιγρά|με αυτό|εξυπηρετ|αρν",
    ),
    "id, ms": (
        r"(?:\b(?:saya|kami|aku)\b.{0,25}|maaf.{0,30}|^\W*)\b(?:tidak|tak|nggak|gak) (?:bisa|dapat|boleh|akan|mampu|bersedia|diizinkan)|"
        r"\b(?:saya|kami) (?:harus |terpaksa )?menolak",
        r"bantu|menolong|memberi|menyediakan|menjawab|permintaan|informasi|maklumat|instruksi|petunjuk|menjelaskan|memenuhi|"
        r"melakukan (?:itu|ini|hal)|membagikan|hal (?:ini|itu)|menolak|menyokong|arahan",
    ),
    "vi": (
        r"\b(?:tôi|mình|chúng tôi|em|xin lỗi|rất tiếc)\b.{0,40}\b(?:không thể|không được phép|không có khả năng|sẽ không|từ chối|"
        r"không muốn|xin phép không|không hỗ trợ)\b",
        r"giúp|hỗ trợ|cung cấp|trả lời|hướng dẫn|yêu cầu|thông tin|giải thích|đáp ứng|mô tả|chia sẻ|việc này|điều (?:này|đó)|từ chối",
    ),
    "zh": (
        r"(?:我|本人|我们|我們|抱歉|对不起|對不起|不好意思|遗憾|遺憾).{0,14}(?:无法|無法|不能|不会|不會|不可以|拒绝|拒絕|没办法|沒辦法|"
        r"不便|不予|难以|不方便|不适合|做不到)|^\W*(?:无法|無法|不能|拒绝|拒絕)|恕.{0,4}(?:不|难|難|無|无)",
        r"提供|回答|协助|協助|帮|幫|满足|滿足|支持|完成|解释|解釋|说明|說明|请求|請求|要求|教你|教您|分享|描述|执行|讨论|討論|"
        r"告诉|告訴|处理|信息|内容|奉告|从命|從命|问题|問題|指导|指導|撰写|做不到",
    ),
    "ja": (
        r"でき(?:ません|かね|ない)|出来(?:ません|かね|ない)|(?:いたし|致し|し|出来)かね|応じられ|応えられ|答えられ|教えられ|助けられ|お断り|差し控え|"
        r"控えさせて|わけには(?:いき|まいり)|遠慮(?:し|いた)|拒否(?:し|いた)",
        r"応え|答え|応じ|手伝|回答|提供|協力|対応|支援|サポート|説明|教え|ご要望|ご依頼|リクエスト|助け|お力|情報|案内|お断り|記述|"
        r"控え|ご質問|ご要求|拒否|指示|手順",
    ),
    "ko": (
        r"수 ?(?:가 |는 )?없|못 ?(?:합|해|하|드)|않겠|거절|거부|어렵습니다|불가능|곤란",
        r"도와|도움|도울|답변|제공|지원|대답|설명|응답|요청|알려|안내|공유|가르|정보|거절|거부|협조|묘사|응할",
    ),
    "ar": (
        r"لا (?:أستطيع|يمكنني|أقدر|يمكننا|نستطيع|أرغب|يسعني|أملك)|لن (?:أ|يمكنني|نتمكن)|لست قادر|غير قادر|أعتذر عن|أرفض|غير مسموح لي",
        r"مساعد|أساعد|تقديم|أقدم|توفير|إجابة|الاجابة|تلبية|شرح|طلب|معلومات|تعليمات|إرشادات|بذلك|بهذا|في هذا|القيام|مشاركة|وصف|أعطي|إعطا",
    ),
    "fa": (
        r"نمی ?(?:توانم|تونم|توانیم|خواهم|دهم)|قادر به .{0,30}نیستم|قادر نیستم|امکان ?پذیر نیست|امتناع|معذور|نخواهم|مجاز نیستم|رد می ?کنم",
        r"کمک|ارائه|پاسخ|درخواست|اطلاعات|راهنمایی|دستورالعمل|توضیح|همکاری|انجام|در این|شرح|جواب",
    ),
    "ur": (
        r"نہیں (?:\S+ )?(?:سکتا|سکتی|سکتے|سکوں)|قاصر|انکار|معذرت",
        r"مدد|معلومات|فراہم|جواب|درخواست|ہدایات|وضاحت|بتا",
    ),
    "he": (
        r"לא (?:\S+ )?(?:יכול|אוכל|מסוגל|אסייע|אעזור|מוכן|ניתן|נוכל|רשאי|אתן|אסביר)|מסרב|לסרב|אין באפשרותי|אין ביכולתי|איני|אינני",
        r"עזור|לסייע|אסייע|סיוע|לספק|לענות|למלא|לתת|בקשה|מידע|הוראות|הנחיות|להסביר|אסביר|בזה|בכך|סרב|לתאר|לשתף|אתן|תשובה",
    ),
    "hi": (
        r"नहीं (?:\S+ ){0,2}(?:सकता|सकती|सकते|सकूँगा|सकूंगा|सकूँगी|पाऊँगा|पाऊंगा|करूँगा|करूंगा|दूँगा|दूंगा)|असमर्थ|सक्षम नहीं|"
        r"इनकार|मना करत|अनुमति नहीं",
        r"मदद|सहायता|जानकारी|उत्तर|जवाब|अनुरोध|निर्देश|प्रदान|समझा|बता|इसमें|वर्णन|सहयोग",
    ),
    "bn": (
        r"পারি না|পারছি না|পারব না|পারবো না|পারলাম না|সক্ষম নই|অক্ষম|অপারগ|সম্ভব নয়|অস্বীকার|করব না|দেব না",
        r"সাহায্য|সহায়তা|তথ্য|উত্তর|অনুরোধ|নির্দেশ|প্রদান|ব্যাখ্যা|বলতে|দিতে|বিষয়ে|বর্ণনা|জানাতে",
    ),
    "th": (
        r"ไม่สามารถ|ไม่อาจ|ปฏิเสธ|ไม่ขอ|ไม่ยินดี|ไม่สะดวก|(?:ช่วย|ตอบ|บอก|ทำ).{0,20}ไม่ได้",
        r"ช่วย|ให้ข้อมูล|ตอบ|คำแนะนำ|คำขอ|ข้อมูล|อธิบาย|สนับสนุน|ทำตาม|เรื่องนี้|บอก|ปฏิเสธ",
    ),
}
_NO = re.compile(
    "|".join(f"(?:{unicodedata.normalize('NFKC', no)})" for no, _ in _NO_AND_HELP.values())
)


def _compiled(patterns: tuple[str, str]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(unicodedata.normalize("NFKC", pattern)) for pattern in patterns)


_EACH = [_compiled(pair) for pair in _NO_AND_HELP.values()]
# What a prompt that asks for such words has: the answer may then be an apology or a "no" to somebody else.
ASKS_FOR_A_NO = re.compile(
    unicodedata.normalize(
        "NFKC",
        r"absag|entschuldig|ablehn|absch?lägig|nicht (?:\w+ )?(?:kann|komme)|übersetz|sag(?:e|t) (?:ich|man)|traduc|tradui|traduz|vertaal|översätt|oversæt|oversett|przetłumacz|přelož|перевед|переклад|çevir|terjemah|dịch|翻译|翻譯|翻訳|번역|ترجم|תרגם|अनुवाद|অনুবাদ|แปล|weiger|excus|afwijz|afzeg|verontschuldig|ursäkt|avböj|tacka nej|"
        r"unnskyld|undskyld|avslag|afslag|refus|déclin|desculp|\brecus|disculp|rechaz|declin|\bnegar|no puedo|não posso|\bscus|rifiut|non posso|"
        r"przepro|odmow|odmów|omluv|omlouv|odmít|\bscuz|refuz|bocsán|elutasít|visszautas|kieltäy|anteeksi|özür|\bredde|извин|отказ|"
        r"вибач|відмов|извинен|isprik|odbij|συγγνώμη|απόρριψ|άρνησ|maaf|menolak|penolakan|xin lỗi|từ chối|道歉|拒绝|拒絕|婉拒|谢绝|歉|"
        r"お詫び|謝罪|断[りるわ]|お断り|사과|거절|اعتذار|رفض|عذر|پوزش|معذرت|رد کردن|התנצל|סירוב|לסרב|माफ|क्षमा|इनकार|मना कर|"
        r"ক্ষমা|দুঃখ|প্রত্যাখ্যান|ขอโทษ|ปฏิเสธ",
    )
)


def declines(sentence: str) -> str:
    """The words of a sentence that decline in one of the languages; else the empty string."""
    if _NO.search(sentence):
        for no, helps in _EACH:
            match = no.search(sentence)
            if match and helps.search(sentence):
                return match.group()
    return ""
