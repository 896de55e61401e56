"""The table that `make cells` is compared with: percent of the bound at coverage 30, 70, 100 and 150 %.

Source: section 4 of the project's economics reference (23 November 2026), made with another simulator. Average cost
from an empty fleet is 0.0 in all 20 cells there.
"""

from __future__ import annotations

PUBLISHED = {
    "gpu-only": {
        "gpt4o": (0.3, 0.4, 5.1, 70.2), "gpt5": (0.2, 0.3, 5.2, 71.8), "mix_4o_mini": (0.2, 0.3, 4.8, 67.6),
        "mix_3": (0.1, 0.3, 4.9, 69.4), "code_premium": (0.2, 0.3, 3.1, 55.5)},
    "random": {
        "gpt4o": (40.0, 45.5, 50.9, 70.2), "gpt5": (33.3, 44.0, 51.2, 71.8), "mix_4o_mini": (26.5, 37.4, 46.6, 67.6),
        "mix_3": (25.1, 38.4, 47.7, 69.4), "code_premium": (34.2, 36.9, 39.9, 55.5)},
    "threshold": {
        "gpt4o": (66.3, 85.6, 90.1, 91.6), "gpt5": (57.2, 84.7, 91.6, 93.4), "mix_4o_mini": (44.3, 69.8, 82.0, 88.1),
        "mix_3": (42.8, 73.0, 84.8, 90.1), "code_premium": (39.3, 57.0, 68.8, 76.8)},
    "tuned": {
        "gpt4o": (84.0, 94.4, 94.5, 97.1), "gpt5": (81.4, 95.0, 95.5, 97.6), "mix_4o_mini": (56.1, 76.9, 86.1, 93.5),
        "mix_3": (58.7, 81.4, 88.7, 94.8), "code_premium": (44.3, 62.9, 76.5, 89.6)},
    "average-warm": {
        "gpt4o": (82.4, 94.3, 94.6, 96.9), "gpt5": (77.8, 95.0, 95.7, 97.5), "mix_4o_mini": (86.4, 92.9, 93.8, 94.0),
        "mix_3": (56.6, 83.9, 93.5, 89.6), "code_premium": (43.3, 62.4, 79.5, 9.4)},
    "average-cold": dict.fromkeys(("gpt4o", "gpt5", "mix_4o_mini", "mix_3", "code_premium"), (0.0, 0.0, 0.0, 0.0)),
}  # fmt: skip
