r"""The phrases by which `findings_in` reads a report: terms, look-alikes, cues and boundaries.

Tables only; `clinical.py` says how they are used. All patterns are verbose (a space is written
`\s` or `[ ]`) and match without regard to case, in text whose white space is single spaces.
A change of any pattern changes figures, so it needs a new VERSION.
"""

from __future__ import annotations

import re

VERSION = "findings-v3"


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.VERBOSE)


_HEART = r"""(?:
    (?:heart|cardiac|cardiomediastinal|cardiopericardial) (?:\s(?:size|silhouettes?|contours?
      |shadow))?
    | cardiac\sand\smediastinal\s(?:silhouettes?|contours?)
)"""
# Up to six words between the heart and "enlarged", none of which begins another statement.
_HEART_TO_ENLARGED = r"""
    (?:,?\s(?:(?:and|&)\s(?:the\s)?(?:pulmonary|mediastin\w+|aort\w+|vascul\w+)
        | (?!(?:and|with|without|but|normal|unremarkable|lungs?|no|than)\b)[\w/-]+
        | no\slonger)){0,6}?
"""

# Finding → how reports write it. Written for reports of MIMIC-CXR and Indiana and for the phantom's
# wording.
TERMS: dict[str, str] = {
    # The heart is large by a noun, an adjective before it or a verb after it. Not "heart rate".
    "cardiomegaly": rf"""
        cardiomegaly | megalocardia
        | (?:enlarge(?:d|ment\sof)|increased?(?:\sin)?)\s(?:the\s|overall\s)?
          (?:heart(?!\s(?:rate|sound|failure)) | card(?:iac|iomediastinal)\s(?:size|silhouette
          |shadow)
            | cardiothoracic\sratio)
        | enlarge(?:d|ment\sof)\s(?:the\s)?(?:cardiac|cardiomediastinal)
        | {_HEART}\senlargement | cardiac\sdilat(?:ion|ation)
        | {_HEART}{_HEART_TO_ENLARGED}\s(?:enlarged|prominent)
        | (?:heart|cardiac\ssilhouette)(?:\ssize)?\s(?:is|appears|remains)\s(?:\w+\s)?
          (?:large|increased)
        | borderline\s(?:enlarged\s)?{_HEART}
        | {_HEART}\s(?:(?:is|are|remains?|appears?|at|at\sthe|upper)\s)?(?:\w+\s)?borderline
    """,
    # A blunted angle is a sign only, see SIGNS. "Pericardial" is among the look-alikes.
    "pleural effusion": r"""
        (?:pleural\s)?effusions? | pleural\sfluid | fluid\sin\sthe\s(?:\w+\s)?pleural\sspace
        | pleural(?=\s(?:or|and|and/or|/)\spericardial\s(?:effusion|fluid))
        | ha?emothora(?:x|ces) | hydrothora(?:x|ces) | (?:pleural|thoracic)\sempyema
    """,
    # With its compounds: a hydropneumothorax is one.
    "pneumothorax": r"""
        (?:(?:tension\s)?(?:hydro|ha?emo|pyo)?-?)pneumothora(?:x|xes|ces)\b | ptx(?:s|es)?\b
    """,
    # Not "airspace disease", which is an opacity below: it need not be consolidated.
    "consolidation": r"consolidations? | consolidative",
    # Congestion is its first stage, and CheXpert counts it and prominent vessels too.
    "edema": r"""
        o?edema | congestion | pulmonary\svenous\shypertension
        | (?:congested|engorged)\s(?:\w+\s)?(?:vasculature|vascularity|vessels)
        | vascular\s(?:prominence|engorgement|redistribution|cephalization)
        | (?:prominen(?:ce\sof|t)|increased)\s(?:the\s)?(?:central\s|pulmonary\s|lung\s){0,2}
          (?:vasculature|vascularity)
        | (?:pulmonary|central|lung)\s(?:vasculature|vascularity|vessels|vascular\smarkings)\s
          (?:(?:is|are|appears?|remains?)\s)?(?:(?!not\b)\w+\s)?(?:prominent|engorged|congested
          |increased)
    """,
    # Of a lung or a part of one: a vertebra collapses too.
    "atelectasis": r"""
        atelecta(?:sis|ses|tic) | volume\sloss | loss\sof\s(?:lung\s)?volume
        | collapse\sof\s(?:\w+\s){0,6}(?:lungs?|lobes?|lingula|segments?|bases?)\b
        | (?:lung|lobar|lobe|segmental|lingular)\scollapse
        | collapsed\s(?:\w+\s){0,3}(?:lung|lobe|lingula)
    """,
    # Where the lesion is decides: those of bones and other organs are among the look-alikes.
    "lung lesion": r"nodul(?:es?\b|ar) | mass(?:es)?\b | lesions?",
    # Lines, tubes and implants that an image shows, valves among them as in CheXpert. Clips, plates
    # and stents are left out.
    "support devices": r"""
        pacemakers? | pacers? | pacing\s(?:leads?|wires?|device) | defibrillators? | a?icd\b
        | (?:[\w-]+\s)?catheters? | (?:central|picc|venous|dialysis|jugular|subclavian
        |arterial)\slines?
        | piccs?\b | endotracheal\s(?:tubes?|tip) | et[ ]tubes? | ett\b | tracheostomy
        | (?:naso|oro)-?gastric | nasoenteric\stube | [no]g[ ]tubes? | [no]gt\b
        | enteric\s(?:feeding\s)?tubes?
        | feeding\stubes? | dob-?hoff | chest\stubes? | thoracostomy\stubes?
        | pleural\s(?:drains?|tubes?)
        | pigtail | swan-?\s?ganz | port-?a-?cath | mediport | infusaport | \bport\b
        | (?:intra-?)?aortic\sballoon\spump | iabp\b | lvad\b
        | (?:support|monitoring|(?:implant\w+\s)?(?:cardiac|electronic)|assist|closure)\sdevices?
        | stimulators? | (?:pulse\s)?generators? | (?:loop|event)\srecorders?
        | (?:monitor(?:ing)?|cardiac|ekg|ecg|telemetry|icd|ventricular|atrial|dual)\sleads?
        | (?:heart|aortic|mitral|tricuspid|pulmon(?:ic|ary)|cardiac|prosthetic|artificial
          |mechanical)\svalve\s(?:prosthes[ie]s|replacements?) | valve\sreplacements?
        | (?:prosthetic|artificial|mechanical|bioprosthetic)\s(?:\w+\s){0,2}valves?
        | bone\sanchors?
        | sternotomy\swires? | (?:sternal|cerclage)\swires?
    """,
    # Emphysema is read as its cause; subcutaneous emphysema is a look-alike.
    # CheXpert has no such finding; Indiana's indexers name it by the lungs, emphysema or COPD.
    "hyperinflation": r"""
        copd\b | chronic\sobstructive\s(?:pulmonary|lung|airways?)\sdisease
        | large\slung\svolumes
        | hyper-?inflat(?:ed|ion) | over-?inflat(?:ed|ion) | hyper-?expan(?:ded|sion)
        | hyper-?aerat(?:ed|ion) | emphysema
        | flattened\s(?:hemi)?diaphragms? | flattening\sof\s(?:the\s)?(?:\w+\s)?(?:hemi)?diaphragms?
    """,
    # Named as a diagnosis only; its signs are findings of their own.
    "pneumonia": r"(?:broncho|pleuro)?pneumonias?\b | pneumonic\b",
    # The word of a reader who does not commit to a cause.
    "lung opacity": r"""
        opacit(?:y|ies) | opacifications? | infiltrat(?:es?|ions?) | air-?\s?space\sdisease
    """,
    # Of bones; a fractured wire is among the look-alikes.
    "fracture": r"fractur(?:es?|ed)\b",
}
# Finding → a sign that is not the finding itself. Alone it is doubt; a word on the finding has more
# weight: "mild blunting of the right costophrenic angle without pleural effusion".
SIGNS: dict[str, str] = {
    # Scars blunt an angle too. "XXXX" is Indiana's mark of a deleted word.
    "pleural effusion": r"""
        blunting\sof\s(?:\w+\s){0,4}(?:costophrenic|sulc(?:us|i))
        | costophrenic\s(?:\w+\s){0,2}blunting
        | blunted\s(?:\w+\s){0,3}costophrenic
        | costophrenic\s(?:(?:angles?|sulc(?:us|i)|recess(?:es)?|XXXX)\s)?
          (?:is|are|remains?|appears?)\s(?:\w+\s){0,2}blunted
    """,
}
TERM = {name: _compile(rf"\b(?:{pattern})") for name, pattern in TERMS.items()}
SIGN = {name: _compile(rf"\b(?:{pattern})") for name, pattern in SIGNS.items()}

_BONE = r"""(?:
    bon(?:e|es|y)|oss?eous|skeletal|ribs?|vertebra\w*|spin(?:e|al)|clavic\w+|humer\w+|scapul\w+
    |stern(?:um|al)|glenoid|shoulder|skull|pelvi[sc]|femor\w+|iliac|pedicle|[TLC]-?\d{1,2}\b
)"""
_ELSEWHERE = r"""(?:
    liver|hepatic|renal|kidney|adrenal|spleen|splenic|pancrea\w+|thyroid|breasts?|skin|cutaneous
      |dermal
    |soft\stissues?|subcutaneous|chest\swall|abdom\w+|neck|cervical|axilla\w*|brain|cerebral
    |intracranial|gastric|colon\w*|bladder|uter\w+|ovar\w+|intracardiac
)"""
# What contains a term and is not the finding: a match inside one of these is no mention.
LOOK_ALIKES = _compile(
    rf"""\b(?:
        (?:pericardial|joint|knee|hip|elbow|ankle|shoulder|subdural|ear)\s(?:effusions?|fluid)
        | effusions?\s(?:of|in|within|around)\s(?:the\s)?(?:\w+\s)?
          (?:pericardi\w+|joint|knee|hip|elbow|ankle|shoulder)
        | (?:subcutaneous|soft[\s-]tissue|surgical|mediastinal|chest\swall|interstitial|orbital)
          (?:\s(?:and|or|/)\s(?:mediastinal|soft[\s-]tissue|subcutaneous))?\semphysema
        | emphysema\s(?:of|in|within|along|over|throughout|involving)\s(?:the\s)?(?:\w+\s){{0,3}}
          (?:{_ELSEWHERE}|mediastinum|supraclavicular|tissues?)
        | (?:{_BONE}|disc|disk|brain|cerebral)(?:\sbody|\sheight)?\s(?:collapse|volume\sloss)
        | (?:{_BONE}|{_ELSEWHERE}|lytic|osteolytic|sclerotic|blastic|osteoblastic|destructive)
          (?:\s(?!(?:and|or|nor|no|with|without|but)\b)[\w-]+){{0,3}}?
          \s(?:lesions?|mass(?:es)?|nodul(?:es?|ar(?:ity)?))\b
        | (?:lesions?|mass(?:es)?|nodules?)\s(?:(?:is|are)\s)?(?:\w+\s)?(?:of|in|within|involving
        |at)\s
          (?:(?!(?:lungs?|lobes?|hil\w+)\b)[\w-]+\s){{0,4}}(?:{_BONE}|{_ELSEWHERE})
        | mass\seffect | body\smass
        | (?:soft[\s-]tissue|subcutaneous|pedal|peripheral|leg|ankle|lower\sextremity|limb|facial
          |cerebral|brain|marrow|laryngeal|bowel|wall)\so?edema
        | o?edema\s(?:of|in)\s(?:the\s)?(?:\w+\s){{0,2}}
          (?:legs?|ankles?|feet|extremit\w+|limbs?|soft\stissues?|brain|neck|airway)
        | pneumonia\svaccin\w+
        | (?:wires?|leads?|catheter|hardware|screws?)\s(?:(?:is|are)\s)?fractur(?:es?|ed)
        | fractur(?:ed?|es)\s(?:of\s)?(?:\w+\s){{0,2}}(?:wires?|leads?|catheter|hardware|screws?)
        | (?:cuff|balloon)\s(?:is\s|appears\s)?(?:hyper|over)-?inflat(?:ed|ion)
        | (?:hyper|over)-?inflat(?:ed|ion)\s(?:of\s)?(?:the\s)?(?:\w+\s){{0,2}}(?:cuff|balloon)
    )"""
)

# What may stand between "no" and "change", in any number.
_ADVERBS = r"""(?:\s?\b(?:
    significant|substantial|definite|definitive|convincing|appreciable|obvious|overall|large|major
    |interval|acute|further|real|gross|notable|marked|relevant|detectable|discernible|radiographic
    |evidence|sign|signs|evident|of|any|a|the|(?!on)\w+ly
)\b)*\s?"""
_CHANGE = r"""(?:
    changes?|differences?|worsening|improvement|progression|regression|increase|decrease|growth
    |alteration|resolution|clearing|enlargement(?=\sof\s(?!the\sheart|the\scardi|heart|cardi))
)\b"""
# The same as a verb or an adjective: "has not changed".
_CHANGED = r"(?:changed|different|worse|worsened|improved|progressed|increased|decreased|grown)\b"

# Cues before a term, tried in this order at each place: a longer phrase hides a shorter one in it.
CUE_BEFORE = _compile(
    rf"""
    # "No change in the effusion" does not deny it.
    (?P<neutral>
        \b(?:no|without|w/o)\b{_ADVERBS}
        {_CHANGE}(?:,?\s(?:or|and)\s{_ADVERBS}{_CHANGE})?(?=\s(?:in|of|from|to|since)\b|\s?[,.;]|$)
        | \bnot\b{_ADVERBS}{_CHANGED}
        | \bnot\s(?:only|just|completely|fully|entirely|yet)\b
        | \bno\sdoubt\b
        | \b(?:partial|partially|incomplete|incompletely|near|nearly|near-complete|almost)[\s-]
          (?:complete(?:ly)?[\s-])?(?:interval\s)?(?:(?:resolution|clearing)\sof|resol(?:ved|ving))
    )
    | (?P<uncertain>
        \b(?:cannot|can['’]?t|could\snot|can\snot|does\snot|do\snot|not|unable\sto|difficult\sto
            |hard\sto|without)\s
          (?:\w+ly\s|be\s)?(?:exclud\w+|rul(?:e|ed|ing)\sout)\b
        | \b(?:possibl[ey]|possibility|possibilities|probabl[ey]|may(?!\s\d)|might|could|maybe
        |perhaps
            |potential(?:ly)?|borderline|suspect\w*|suspicio\w+|questionable|question|questioned|equivocal
            |suggest\w*|concern\w*|worrisome|worry|worrying|(?<!un)likely|presum\w+|versus|vs
            |consider
            |consideration|considered|differential|favou?r(?:s|ed|ing)?
            |cannot\sdifferentiate|appropriate\sclinical\s(?:setting|context))\b
        | \?
    )
    | (?P<alternative> \bor\b(?!\s(?:\d|two|three|more|less|so)\b)(?=\s(?:[\w-]+\s){{0,4}}[\w-]+$))
    | (?P<unasserted>
        \b(?:rule|rules|ruled|ruling)[\s-]out | \br/o\b | \b(?:to|and)\s(?:better\s)?exclude\b
        | \b(?:evaluat\w+|assess\w*|check\w*|look\w*|screen\w*|looking|search\w*)\sfor\b
        | \b(?:to|further)\s(?:evaluate|assess)\b | \bfor\s(?:the\s)?evaluation\sof\b
        | \bif\s(?:[\w-]+\s){{0,5}}(?:concerns?|suspicion|suspected|symptoms|question)\b
        | \bhistory(?:\sof\b|\s?:|\ssignificant\sfor\b) | \b(?:hx|h/o|pmh)\b
        | \b(?:prior|previous|recent)\s(?=pneumonia)
        | \b(?:risk|risks)\s(?:of|for|factors)\b
        | \b(?:treated|treatment|therapy|antibiotics)\sfor\b
        | \b(?:ensure|document|confirm|establish|until|verify|show|demonstrate|assure)\s
          (?:\w+\s)?(?:resolution|clearing|clearance)\b
        | \b(?:indications?|reason\sfor\s(?:the\s)?(?:exam\w*|study)|clinical\s(?:history
        |information
            |indication|data|statement|question)|comparison|technique|exam|examination)\s?:
    )
    | (?P<absent>
        \b(?:no|not|without|w/o|never|nor|neither|none\sof|lack\sof|lacks|lacking|denies|denied
        |devoid\sof
            |absence\sof|absent(?=\s(?!and\b|with\b)\w)|fails?\sto
            |negative\s(?:[\w-]+\s){{0,3}}for|negative(?=\s(?:pneum|chest))
            |(?:free|clear|cleared)\sof|resolution\sof|clearing\sof(?=\sthe\b)|disappearance\sof
            |rather\sthan|instead\sof|as\sopposed\sto|unlikely|less\slikely\sto\sbe
            |resolved(?=\s(?!and\b|with\b)\w))\b
        | \bnon[\s-]?enlarged
        | (?<!consider\s)(?<!recommend\s)(?<!before\s)(?<!prior\sto\s)(?<!for\s)(?<!suggest\s)
          \b(?:removal|extraction|explantation|discontinuation)\sof\b
        | \bremoved(?=\s(?!and\b|with\b)\w)
    )
    """
)

# Verbs that reports put between a finding and what they say of it.
_VERB = r"""(?:is|are|was|were|has|have|had|been|be|being|can|cannot|could|may|might|should|would
    |does|do
    |did|remains?|appears?|appeared|shows?|persists?|continues?|represents?|measures?|projects?
    |terminates?|ends?|overlies|contains?|there|seems?)"""
_SEEN = r"""(?:seen|identified|visuali[sz]ed|present|evident|appreciated|noted|demonstrated|detected
    |observed|found|apparent|shown|recogni[sz]ed|suspected|suggested|visible|delineated|discernible
    |discerned|depicted|confirmed|conspicuous|revealed)"""
# From a term to its own verb: no other verb, no other statement.
_TO_VERB = rf"""(?:(?:,?\s(?:-\s)?|/)(?!(?:{_VERB}|but|without|with|no|not|none|never|versus|vs)\b)
    [\w'’-]+){{0,9}}?"""
_BE = r"""(?:[\s,-]+(?:is|are|was|were|has|have|had|been|be|being|appears?|to|can|would|could|and
    |it)){0,4}"""
_FULLY = r"""(?:\s+(?:now|since|also|again|recently|subsequently|interval|all|both|in\sthe\sinterval
    |(?!part|near|larg|most|incomp|virtual|almost|like|probab|possib|presum)\w+ly)){0,3}"""
_END = r"""(?=\s*(?:[.,;:)?!-]|$|\b(?:and|but|given|in|on|at|with|although|though|however|as|here
    |or)\b))"""

# Cues after a term, in its clause.
CUE_AFTER = _compile(
    rf"""^(?:s|es|ed)?(?:
    (?P<uncertain>
        {_TO_VERB}{_BE}\s+(?:not|cannot|can\snot|can['’]t)\s(?:be\s)?(?:\w+ly\s)?(?:be\s)?
          (?:\w+ly\s)?(?:excluded|ruled\sout|confirmed\sor\sexcluded|discounted)
        | {_TO_VERB}{_BE}\s+(?:difficult|hard|impossible)\sto\s(?:\w+ly\s)?(?:exclude|rule\sout)
        | {_TO_VERB}[\s,]+(?:may|might|could)\s(?:also\s)?(?:be\s(?:present|seen|considered)
        |exist|coexist)
        | {_TO_VERB}[\s,]+should\s(?:also\s)?be\sconsidered
        | {_TO_VERB}{_BE}(?:\s+also)?[\s,(]+(?:also\s|most\s|very\s|less\s|more\s|only\s|an?\s
        |in\sthe\s|of\s)*
          (?:possible|probable|possibly|probably|suspected|likely|questioned|questionable|equivocal
            |suspicious|considered|possibility|consideration|concern|differential(?:\sdiagnosis)?
            |favou?red|(?<!age\s)(?<!age-)indeterminate|presumed|conceivable)(?:\spresent)?{_END}
        | \s?\?
    )
    | (?P<alternative>
        (?:\s(?!(?:{_VERB}|with|without|no|and|in|at|on)\b)[\w-]+)?[\s,]+(?:versus|vs
        |or(?!\s(?:\d|two|three|more|less|so)\b))\b
    )
    | (?P<unasserted>
        {_TO_VERB}\s+(?:may|might|would)\snot\s(?:\w+ly\s)?be\s(?:\w+ly\s)?\w+
        | {_TO_VERB}{_BE}\s+(?:not|cannot)\s(?:\w+ly\s)*(?:be\s)?(?:\w+ly\s)?(?:evaluated|assessed)
    )
    | (?P<absent>
        # Lists of results: "Pneumothorax: none."
        (?:[\s,/]+(?!{_VERB}\b)[\w-]+){{0,4}}?\s?(?:[:=(–—]|\s-{{1,2}}\s)\s?
          (?:none|nil|absent|negative|neg|not\b(?!\s(?:significantly\s|\w+ly\s)?
            (?:changed|improved|excluded|increased|decreased))|no(?=\s*(?:[.,;)]|$))
            |no\s(?:evidence|sign|signs|longer)|resolved|removed|without|denied)\b
        | {_TO_VERB}{_BE}{_FULLY}[\s,]+
          (?:(?:not|no\slonger|never|nowhere|non|none)\b(?:\s(?:\w+ly|be|been|well|clearly|any))*[\s-]
               (?:well-)?(?:an?\s)?(?:{_SEEN}|enlarged|there|a\sfeature)\b
            | none\b
            | (?:absent|unlikely|less\slikely|ruled\sout|excluded|resolved|cleared(?!\s(?:partial
            |somewhat))
                |gone|disappeared|vanished|denied|removed|explanted|extracted|taken\sout
                |discontinued
                |withdrawn(?!\s(?:by\s|approximately\s|about\s)?\d))\b
          )
        | (?:\s(?:lines?|tubes?|catheters?|drains?))?\s(?:removal|extraction|explantation)\b
        | {_TO_VERB}[\s,]+(?:does|do|did)\snot\s(?:persist|exist|remain)
        | {_TO_VERB}{_BE}\s+within\s(?:normal\slimits|(?:the\s)?limits\sof\snormal)
    )
    )"""
)

# Where a sentence turns: no cue reaches past these.
_TURN = r"""
    [;•] | \b(?:but|however|although|though|whereas|except(?:\sfor)?|with\sthe\sexception\sof
      |apart\sfrom
        |aside\sfrom|other\sthan|save\sfor|besides|yet|despite|because|owing\sto
        |obscured\sby|attributed\sto|attributable\sto|status[\s-]post|s/p|after|following
        |otherwise)\b
    # "May be due to edema" is doubt that reaches the edema.
    | (?<!\bbe\s)(?<!likely\s)(?<!possibly\s)(?<!probably\s)(?<!perhaps\s)(?<!partially\s)
      (?<!part\s)
      (?<!partly\s)(?<!versus\s)(?<!or\s) \b(?:due|secondary)\sto\b
"""
# Words that begin an assertion of its own after a comma or "and": "…, small left effusion".
_ASSERTIVE = r"""(?:
    an?|the|there|this|these|it|again|now(?!\s(?:\w+ly\s)?(?:resolved|gone|absent|cleared
      |removed))|also|possible|possibly|probable|probably|likely
    |suspect\w*|questionable|status|rule|evaluate|history|consider|cannot|can|may|suggest\w*
      |concern\w*
    |small|moderate|moderately|large|mild|mildly|severe|severely|tiny|trace|minimal|minimally
      |minor|slight
    |slightly|subtle|massive|extensive|marked|markedly|borderline|left|right|bilateral|bilaterally
    |left-sided|right-sided|unilateral|bibasilar|bibasal|basilar|basal|biapical|retrocardiac
      |patchy|hazy
    |linear|streaky|discoid|plate-?like|subsegmental|scattered|multiple|multifocal|several|some
      |few|many
    |one|two|three|\d+(?:\.\d+)?\s?(?:mm|cm)|new|newly|stable|unchanged|persistent|persisting
      |residual
    |increased|increasing|decreased|decreasing|worsened|worsening|improved|improving|enlarging
      |enlarged
    |developing|resolving|known|old|healed|healing|remote|chronic|calcified|prominent|low|interval
    |removal|placement|redemonstrat\w+|decrease|increase|improvement
)\b(?!\s*(?:[.,;)]|$))"""
# The rest of a segment up to the next comma or "and".
_REST = r"(?:(?!\b(?:and|or|nor|with|but)\b)[^,;])*?"
_OWN_VERB = rf"""(?=(?!{_VERB}\b)\w{_REST}\b(?:is|are|was|were|has|have|had|remains?|appears?
    |shows?|persists?|continues?
    |measures?|projects?|terminates?|ends?|overlies|cannot|in\s(?:\w+\s)?(?:place|situ
      |position)))"""
_IS_SEEN = rf"{_REST}\b(?:is|are|was|were)\s(?:not\s|no\slonger\s|\w+ly\s)*"
# "No effusion and pneumothorax are seen" is one statement, "no effusion, edema is noted" two.
# A plural has more than the last item of a list: "tube and line have been removed".
_SEEN_AFTER_AND = rf"""(?={_IS_SEEN}(?:{_SEEN}|absent)\b
    |{_REST}\bhave\s(?:now\s|since\s)?(?:been\s)?(?:removed|resolved|cleared)\b)"""
_SEEN_AFTER_COMMA = rf"""(?={_IS_SEEN}(?:seen|identified|visuali[sz]ed|appreciated|detected
    |demonstrated|suspected)\b)"""
# "…, large effusion, or edema" is one list, whatever its items begin with.
_LIST_GOES_ON = rf"""(?!(?:(?!\b(?:and|with|but|there|{_VERB}|possibl[ey]|probabl[ey]|likely
    |suspect\w*
    |suggest\w*|consistent|compatible)\b)[^;])*?(?:\b(?:or|nor)\b|[a-z]{{4}}/[a-z]{{3}}))"""
BOUNDARY = _compile(
    rf"""
    {_TURN}
    | (?:,\s?(?:and|with|while)?|[(]|\s[-–—]{{1,2}})\s? (?:(?={_ASSERTIVE})
      |(?!{_SEEN_AFTER_COMMA}){_OWN_VERB})
      {_LIST_GOES_ON}
    | \b(?:and|with|while|as\swell\sas|plus|along\swith|showing)\s
      (?:(?={_ASSERTIVE}) | (?!{_SEEN_AFTER_AND}){_OWN_VERB})
    """
)

# After one of these a wrapped line cannot have ended its sentence.
UNFINISHED = _compile(
    r"""(?:[,(/–-]|\b(?:no|not|without|of|the|an?|and|or|nor|with|for|in|on|at|to|by|from|is|are
      |was|were
    |has|have|be|been|any|than|that|which|new|acute|focal|left|right|small|large|mild|moderate
      |pleural
    |pulmonary))$"""
)
