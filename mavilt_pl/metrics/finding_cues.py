r"""What a clause says of a finding: cues of negation, doubt and history, and turns of a sentence.

Tables only; `clinical.py` says how they are used, `finding_phrases.py` how they are written. A
change of any pattern changes figures, so it needs a new VERSION there.
"""

from __future__ import annotations

from mavilt_pl.metrics.finding_phrases import compile_verbose

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
CUE_BEFORE = compile_verbose(
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
CUE_AFTER = compile_verbose(
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
BOUNDARY = compile_verbose(
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
UNFINISHED = compile_verbose(
    r"""(?:[,(/–-]|\b(?:no|not|without|of|the|an?|and|or|nor|with|for|in|on|at|to|by|from|is|are
      |was|were
    |has|have|be|been|any|than|that|which|new|acute|focal|left|right|small|large|mild|moderate
      |pleural
    |pulmonary))$"""
)
