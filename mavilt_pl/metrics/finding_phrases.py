r"""The words for findings by which `findings_in` reads a report: terms, signs and look-alikes.

Tables only; `clinical.py` says how they are used. All patterns are verbose (a space is written
`\s` or `[ ]`) and match without regard to case, in text whose white space is single spaces.
A change of any pattern changes figures, so it needs a new VERSION.
"""

from __future__ import annotations

import re

VERSION = "findings-v3"


def compile_verbose(pattern: str) -> re.Pattern[str]:
    """A pattern as all tables of phrases have it."""
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
TERM = {name: compile_verbose(rf"\b(?:{pattern})") for name, pattern in TERMS.items()}
SIGN = {name: compile_verbose(rf"\b(?:{pattern})") for name, pattern in SIGNS.items()}

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
LOOK_ALIKES = compile_verbose(
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
