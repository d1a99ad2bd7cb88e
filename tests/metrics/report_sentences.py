"""Sentences on chest radiographs and what they assert, written before the labeller saw them.

Of the 120, it read 114 right at first sight; 118 are here. The two others are known limits, below.
"""

from __future__ import annotations

# Sentence → findings, each with its label.
SENTENCES: dict[str, str] = {
    "Lungs are clear without effusion, consolidation or pneumothorax.": (
        "pleural effusion absent, consolidation absent, pneumothorax absent"
    ),
    "There has been no interval development of a pneumothorax.": "pneumothorax absent",
    "Neither pleural effusion nor pneumothorax is present.": (
        "pleural effusion absent, pneumothorax absent"
    ),
    "The previously seen left pneumothorax has completely resolved.": "pneumothorax absent",
    "The right pleural effusion has nearly resolved.": "pleural effusion present",
    "Interval removal of the endotracheal tube; the nasogastric tube remains in place.": (
        "support devices present"
    ),
    "The chest tube has been withdrawn by 3 cm.": "support devices present",
    "Heart size is top normal without overt edema.": "edema absent",
    "The cardiac silhouette remains markedly enlarged.": "cardiomegaly present",
    "Cardiac size is within normal limits.": "",
    "The heart is normal in size, but there is mild vascular congestion.": "edema present",
    "Low lung volumes accentuate the heart size, which is likely not enlarged.": (
        "cardiomegaly absent"
    ),
    "Patchy right basilar opacity, which could represent atelectasis or early pneumonia.": (
        "lung opacity present, atelectasis uncertain, pneumonia uncertain"
    ),
    "Findings are worrisome for multifocal pneumonia.": "pneumonia uncertain",
    "Small left effusion cannot be entirely excluded.": "pleural effusion uncertain",
    "A trace right effusion is suspected.": "pleural effusion uncertain",
    "No convincing evidence of pneumonia.": "pneumonia absent",
    "No new focal consolidation.": "consolidation absent",
    "There is no change in the small right apical pneumothorax.": "pneumothorax present",
    "Bilateral effusions are unchanged.": "pleural effusion present",
    "Pulmonary edema has improved but persists.": "edema present",
    "Edema has cleared.": "edema absent",
    "Patient with known COPD and prior pneumonia, now with fever.": "hyperinflation present",
    "INDICATION: Evaluate for pneumothorax. FINDINGS: The lungs are clear.": "",
    "Clinical history of rib fractures. No acute abnormality.": "",
    "Status post right chest tube placement with persistent apical pneumothorax.": (
        "support devices present, pneumothorax present"
    ),
    "Right IJ catheter terminates in the right atrium; no pneumothorax.": (
        "support devices present, pneumothorax absent"
    ),
    "The PICC line has been removed.": "support devices absent",
    "Increasing opacification at the left base with obscuration of the hemidiaphragm.": (
        "lung opacity present"
    ),
    "A 9 mm nodule projects over the right upper lobe.": "lung lesion present",
    "No suspicious pulmonary nodules or masses.": "lung lesion absent",
    "The previously described nodule is no longer visualized.": "lung lesion absent",
    "Possible nodule in the left mid lung, versus a nipple shadow.": "lung lesion uncertain",
    "Healed left clavicle fracture.": "fracture present",
    "No displaced rib fractures are identified.": "fracture absent",
    "The lungs are hyperinflated, consistent with emphysema.": "hyperinflation present",
    "Hyperexpanded lungs with flattened hemidiaphragms but no focal airspace disease.": (
        "hyperinflation present, lung opacity absent"
    ),
    "Bibasilar atelectasis, left greater than right.": "atelectasis present",
    "Linear opacities at the bases likely reflect subsegmental atelectasis.": (
        "lung opacity present, atelectasis uncertain"
    ),
    "There is collapse of the left lower lobe.": "atelectasis present",
    "Compression fracture of T8, age indeterminate.": "fracture present",
    "No large effusion, although the costophrenic angles are excluded from view.": (
        "pleural effusion absent"
    ),
    "Dual-lead pacemaker with leads in expected position.": "support devices present",
    "Median sternotomy wires are intact.": "support devices present",
    "Absence of consolidation or edema.": "consolidation absent, edema absent",
    "Pneumothorax is not seen on this supine film.": "pneumothorax absent",
    "Effusion: none. Pneumothorax: none. Consolidation: right lower lobe.": (
        "pleural effusion absent, pneumothorax absent, consolidation present"
    ),
    "Without a lateral view, a small retrocardiac consolidation is difficult to exclude.": (
        "consolidation uncertain"
    ),
    "Mild interstitial edema with small bilateral effusions and no pneumothorax.": (
        "edema present, pleural effusion present, pneumothorax absent"
    ),
    "No pneumothorax after removal of the left chest tube.": (
        "pneumothorax absent, support devices absent"
    ),
    "The lungs are free of infiltrate.": "lung opacity absent",
    "Infiltrates in both lower lobes have not significantly changed.": "lung opacity present",
    "There is a large hiatal hernia and mild cardiomegaly.": "cardiomegaly present",
    "Not a definite fracture.": "fracture absent",
    "New left lower lobe consolidation and effusion, neither of which was present previously.": (
        "consolidation present, pleural effusion present"
    ),
    "If there is clinical concern for pneumonia, repeat films are advised.": "",
    "Blunted left costophrenic angle may be due to scarring or a tiny effusion.": (
        "pleural effusion uncertain"
    ),
    "Soft tissue emphysema in the neck; no underlying pneumothorax detected.": (
        "pneumothorax absent"
    ),
    "Cardiomegaly is present, with neither edema nor effusion.": (
        "cardiomegaly present, edema absent, pleural effusion absent"
    ),
    "The lungs remain clear, with no effusion identified.": "pleural effusion absent",
    "No acute consolidation, effusion, or pneumothorax; stable cardiomegaly.": (
        "consolidation absent, pleural effusion absent, pneumothorax absent, cardiomegaly present"
    ),
    "Previously noted right basilar consolidation is no longer apparent.": "consolidation absent",
    "Left apical pneumothorax is smaller than before.": "pneumothorax present",
    "Loculated right effusion, increased in size.": "pleural effusion present",
    "There may be a tiny left pneumothorax.": "pneumothorax uncertain",
    "Heart size upper limits of normal without evidence of failure or edema.": "edema absent",
    "The heart size is mildly increased.": "cardiomegaly present",
    "Cardiac enlargement persists.": "cardiomegaly present",
    "The cardiomediastinal contours are not enlarged.": "cardiomegaly absent",
    "Endotracheal tube in standard position, 4 cm above the carina.": "support devices present",
    "Swan-Ganz catheter has been removed in the interval.": "support devices absent",
    "No lines or tubes.": "",
    "Nodular opacity in the lingula, suspicious for malignancy.": (
        "lung lesion present, lung opacity present"
    ),
    "Calcified granuloma; no suspicious lesion.": "lung lesion absent",
    "Lytic lesion in the right humerus.": "",
    "A mass in the right hilum is concerning for neoplasm.": "lung lesion present",
    "Hazy opacity obscures the left hemidiaphragm, probably effusion with atelectasis.": (
        "lung opacity present, pleural effusion uncertain, atelectasis uncertain"
    ),
    "Streaky left basilar opacity, most compatible with atelectasis.": (
        "lung opacity present, atelectasis present"
    ),
    "No evidence of acute fracture or dislocation.": "fracture absent",
    "Old healed right-sided rib fractures.": "fracture present",
    "Fracture of the right seventh rib cannot be ruled out.": "fracture uncertain",
    "Hyperinflation without focal infiltrate.": "hyperinflation present, lung opacity absent",
    "No pulmonary edema or pleural effusions, and heart size is enlarged.": (
        "edema absent, pleural effusion absent, cardiomegaly present"
    ),
    "Rule out pneumonia.": "",
    "Reason for exam: shortness of breath, evaluate for effusion. No effusion.": (
        "pleural effusion absent"
    ),
    "Compared with the prior film, the left effusion has resolved and the right is stable.": (
        "pleural effusion absent"
    ),
    "Residual right effusion after thoracentesis without pneumothorax.": (
        "pleural effusion present, pneumothorax absent"
    ),
    "Persistent small bilateral pleural effusions; edema is improved.": (
        "pleural effusion present, edema present"
    ),
    "Asymmetric edema or pneumonia could have this appearance.": (
        "edema uncertain, pneumonia uncertain"
    ),
    "In the appropriate clinical setting pneumonia should be considered.": "pneumonia uncertain",
    "Right lower lobe pneumonia.": "pneumonia present",
    "Pneumonia is unlikely.": "pneumonia absent",
    "Findings do not suggest pneumonia.": "pneumonia absent",
    "There is no focal opacity to suggest pneumonia.": "lung opacity absent, pneumonia absent",
    "No definite pneumothorax is appreciated, however there is a deep sulcus.": (
        "pneumothorax absent"
    ),
    "The lungs are without focal consolidation, and there is no pneumothorax.": (
        "consolidation absent, pneumothorax absent"
    ),
    "Opacities in the lung bases are less conspicuous.": "lung opacity present",
    "Lungs: Clear. Pleura: Small right effusion. Heart: Enlarged.": "pleural effusion present",
    "Worsening right upper lobe airspace disease with volume loss.": (
        "lung opacity present, atelectasis present"
    ),
    "Partial clearing of the left lower lobe infiltrate.": "lung opacity present",
    "Complete resolution of right lower lobe pneumonia.": "pneumonia absent",
    "The right lung has re-expanded and the pneumothorax is gone.": "pneumothorax absent",
    "No residual pneumothorax.": "pneumothorax absent",
    "Tip of the left PICC projects over the SVC without pneumothorax.": (
        "support devices present, pneumothorax absent"
    ),
    "AICD leads are unchanged in position.": "support devices present",
    "There is elevation of the right hemidiaphragm with adjacent atelectasis, but no effusion.": (
        "atelectasis present, pleural effusion absent"
    ),
    "Pulmonary vascularity is increased, consistent with mild edema.": "edema present",
    "Prominent interstitial markings may reflect edema versus chronic change.": "edema uncertain",
    "Questionable nodule at the right base; CT could clarify.": "lung lesion uncertain",
    "Pleural fluid is again demonstrated on the left.": "pleural effusion present",
    "Both costophrenic angles are sharp.": "",
    "Right costophrenic angle is blunted.": "pleural effusion uncertain",
    "Subcutaneous emphysema along the left chest wall has decreased.": "",
    "Pericardial effusion would be better assessed by echocardiography.": "",
    "Negative for pneumothorax, pleural effusion or focal airspace consolidation.": (
        "pneumothorax absent, pleural effusion absent, consolidation absent"
    ),
    "Emphysematous lungs with bullae.": "hyperinflation present",
    "Right hydropneumothorax with a chest tube in place.": (
        "pneumothorax present, support devices present"
    ),
    "Minimal bibasilar atelectatic change, otherwise clear lungs with no nodule.": (
        "atelectasis present, lung lesion absent"
    ),
}
# What is meant, and not what the labeller says.
NOT_READ = {
    "Recommend follow-up to document resolution of the right lower lobe consolidation.": (
        "consolidation present"
    ),
    "Pulmonary vasculature is not congested.": "edema absent",
}
