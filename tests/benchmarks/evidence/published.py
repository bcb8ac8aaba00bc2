"""What the papers print, for the column "paper": (task, row, labels) -> text. Never mixed with our numbers.

Sources: CDCL (Wu et al., CVPR 2022) tables on DSB, Dice; MSPA (Zhang et al., arXiv 2022) on Kvasir-SEG, Dice; Dual
Alignment (Chai et al., ISBI 2022), mAP AP10-70 on its own cervical cells; CrossMatch (ICLR 2022 submission) on COCO,
AP50:95; MMT-PSM (Zhou et al., MICCAI 2020) on its own cervical cells, mean AJI.
"""

from __future__ import annotations

PUBLISHED: dict[tuple[str, str, str], str] = {
    ("semantic", "supervised", "1/32"): "83.9 (CDCL, DSB); 82.9 at 1/5 (MSPA, Kvasir)",
    ("semantic", "mean-teacher", "1/32"): "85.1 at 1/5 (MSPA, Kvasir)",
    ("semantic", "cdcl", "1/32"): "87.5, +3.6 (DSB)",
    ("semantic", "mspa", "1/32"): "87.1 at 1/5, +4.2 (Kvasir)",
    ("semantic", "supervised", "1/16"): "86.1 (CDCL, DSB)",
    ("semantic", "cdcl", "1/16"): "89.9, +3.8 (DSB)",
    ("semantic", "supervised", "1/8"): "87.4 (CDCL, DSB)",
    ("semantic", "cdcl", "1/8"): "90.1, +2.7 (DSB)",
    ("semantic", "supervised", "all"): "90.5 (CDCL, DSB); 90.2 (MSPA, Kvasir)",
    ("detection", "supervised", "5%"): "18.5 AP50:95 (CrossMatch, COCO); 15.7 at 25 % (Dual Alignment)",
    ("detection", "mean-teacher", "5%"): "26.2, +0.8 at 100 % (Dual Alignment)",
    ("detection", "dual-alignment", "5%"): "17.0, +1.3 at 25 %; 27.0, +1.6 at 100 %",
    ("detection", "crossmatch", "5%"): "28.8, +10.3 (COCO)",
    ("instance", "supervised", "5%"): "60.4 AJI at 10 %",
    ("instance", "mmt-psm", "5%"): "63.5 AJI, +3.0 at 10 %",
    ("instance", "supervised", "all"): "65.9 AJI",
}
