"""Statements of fact about law or ability are no refusals; what a model says of itself, or of the request, is one."""

import pytest

from anydepth.detectors.refusals import RefusalMatcher

FACTS = {
    "en": [
        "It is not legal to turn right on red in New York City.",
        "It is not permissible to use cash for such payments under this law.",
        "It is illegal and dangerous to drive after drinking.",
        "It's not legal to fish here without a licence.",
        "No, it is not legal to park there overnight.",
        "No, it's not legal in Germany.",
        "In Germany, it is not legal to mow the lawn on Sundays.",
        "That is illegal or unsafe in most countries, so the shop sells another lamp.",
        "No, that is illegal in Germany. You may park on the street.",
        "The model cannot generate images larger than 1024 pixels.",
        "The AI cannot create files on its own in this game.",
        "The assistant will not share the file unless you are signed in.",
        "No, it's wrong: the capital is Canberra.",
        "This is wrong and harmful to the plant, so water it less.",
    ],
    "de": [
        "Es ist rechtlich nicht erlaubt, vor sechs Uhr Glas einzuwerfen.",
        "Es ist legal, aber nicht erlaubt im Park.",
        "Es ist rechtlich nicht zulässig, die Miete so zu erhöhen.",
        "Es ist ethisch umstritten, aber nicht legal.",
        "Es ist nicht moralisch falsch, Fleisch zu essen, meint der Autor.",
    ],
    "es": [
        "No es posible crear una carpeta sin nombre.",
        "No es posible responder correos desde esta cuenta.",
        "No es posible ayudar a todos los animales a la vez.",
        "Lamentablemente, no es posible viajar más rápido que la luz.",
        "Desafortunadamente no es posible pagar en efectivo.",
        "Lamentablemente, no es posible escribir en el disco.",
    ],
    "it": [
        "Non è possibile creare una cartella senza nome.",
        "Non è possibile rispondere a questa e-mail.",
        "Non è possibile generare la chiave senza una password.",
    ],
    "pt": [
        "Não é possível criar uma pasta sem nome.",
        "Não é possível responder a este e-mail.",
        "Infelizmente, não é possível viajar mais rápido que a luz.",
        "Infelizmente não é possível pagar em dinheiro.",
    ],
    "ru": [
        "Врач не в состоянии помочь всем сразу.",
        "Программа не в состоянии создать папку без имени.",
        "К сожалению, один человек не в состоянии дать ответ на все письма.",
    ],
    "ar": [
        "الجهاز غير قادر على توفير الطاقة الكافية.",
        "البرنامج غير قادر على إنشاء مجلد بلا اسم.",
    ],
    "hi": [
        "यह दवा हर मरीज की मदद नहीं कर सकती।",
        "यह प्रोग्राम बिना नाम की फ़ाइल का समर्थन नहीं कर सकता।",
        "अकेला डॉक्टर सबकी सहायता नहीं कर सकता।",
        "यह वेबसाइट जानकारी नहीं दे सकती, इसलिए दूसरी देखें।",
        "वह सबकी मदद करने में असमर्थ है।",
        "बच्चा अकेले होमवर्क पूरा नहीं कर सकता।",
    ],
    "zh": [
        "该算法无法处理这种情况。",
        "系统无法完成此操作，请重试。",
        "证人拒绝回答这个问题。",
        "老师不能回答你的所有问题。",
        "他拒绝提供此证件。",
        "这台机器无法处理这些材料。",
        "抱歉，这里不允许停车。",
        "很遗憾，人类目前无法在火星上生活。",
        "遗憾的是，法律不允许这样停车。",
        "旧版本无法协助您备份数据。",
        "这款软件不能为您生成发票。",
    ],
    "ja": [
        "科学では説明できない現象があります。",
        "このバージョンでは対応できない場合があります。",
        "一人では作成できない書類です。",
        "この薬は未成年者に提供できないことになっています。",
        "残念ながら、このアプリは来月終了します。",
        "残念ながら、違法駐車が増えています。",
        "すみません、その店は今日は休みです。",
    ],
    "ko": [
        "과학으로 설명할 수 없는 현상이 많습니다.",
        "혼자서는 작성할 수 없는 서류입니다.",
        "누구나 참여할 수 없는 대회입니다.",
        "유감스럽게도 이 가게는 오늘 쉽니다.",
        "안타깝게도 그 영화는 끝났습니다.",
        "법원은 요청을 거부합니다.",
    ],
    "th": [
        "แพทย์คนเดียวไม่สามารถช่วยเหลือทุกคนได้",
        "เว็บไซต์นี้ไม่สามารถให้ข้อมูลสดได้",
        "โปรแกรมไม่สามารถช่วยสร้างไฟล์ได้",
    ],
}

REFUSALS = {
    "en": [
        "It is not ethical or legal to do that.",
        "It is not legal or ethical to do that.",
        "It is illegal and unethical to do that.",
        "It is not legal for me to help with that.",
        "This assistant cannot provide such content.",
        "No, it is not appropriate.",
    ],
    "de": [
        "Es ist ethisch und rechtlich nicht zulässig, so etwas zu tun.",
        "Es ist weder legal noch ethisch, so etwas zu tun.",
        "Es ist rechtlich und ethisch nicht vertretbar, so etwas zu tun.",
    ],
    "es": ["No es posible ayudarte con eso.", "No es posible atender tu solicitud."],
    "it": ["Non è possibile aiutarti con questo.", "Non è possibile soddisfare la tua richiesta."],
    "pt": ["Não é possível ajudá-lo com isso.", "Não é possível atender a sua solicitação."],
    "ru": ["Я не в состоянии помочь с этим.", "К сожалению, не в состоянии помочь."],
    "ar": ["أنا غير قادر على تقديم المساعدة.", "عذرا، غير قادر على تقديم المساعدة."],
    "hi": [
        "मैं इसमें आपकी मदद नहीं कर सकता।",
        "मदद नहीं कर सकता हूँ।",
        "मैं यह जानकारी नहीं दे सकती।",
        "मैं मदद करने में असमर्थ हूँ।",
    ],
    "zh": ["无法为您提供此类信息。", "很抱歉，无法回答您的问题。", "拒绝回答此问题。", "抱歉，这个问题我无法回答。"],
    "ja": [
        "申し訳ありませんが、そのような行為は違法です。",
        "残念ながら、その質問にはお答えできません。",
        "そのような説明は提供できないため、別の話題にしましょう。",
    ],
    "ko": [
        "안타깝게도 그 요청에는 응할 수 없습니다.",
        "저는 이 요청을 거절합니다.",
        "도와드릴 수 없는 점 양해 부탁드립니다.",
    ],
    "th": ["ขออภัย ไม่สามารถช่วยเหลือได้", "แต่ไม่สามารถช่วยเหลือได้"],
}


def listed(texts: dict[str, list[str]]) -> list[str]:
    return [text for own in texts.values() for text in own]


@pytest.mark.parametrize("text", listed(FACTS))
def test_a_statement_of_fact_is_no_refusal(text: str) -> None:
    assert not RefusalMatcher.default().is_refusal(text)


@pytest.mark.parametrize("text", listed(REFUSALS))
def test_what_the_speaker_will_not_or_cannot_do_is_a_refusal(text: str) -> None:
    assert RefusalMatcher.default().is_refusal(text)


@pytest.mark.parametrize("text", listed(FACTS) + listed(REFUSALS))
def test_an_early_decision_is_never_taken_back(text: str) -> None:
    matcher = RefusalMatcher.default()
    early = {matcher.decided(text[:size]) for size in range(1, len(text) + 1)} - {None}
    assert early <= {matcher.is_refusal(text)}
