"""One file for each figure, which says what the paper claims, what is tested here, and what would confirm and refute it."""

from __future__ import annotations

from benchmarks.figures.experiments import (
    adaptive,
    age,
    fig02,
    fig03,
    fig03_smollm2,
    fig05,
    fig07,
    fig08,
    fig08_smollm2,
    fig09,
    fig09_low,
    fig09_smollm2,
    fig10,
    fig11,
    fig11_many,
    prioritized,
    tbrm_rates,
)

FIGURES = {
    module.FIGURE.name: module.FIGURE
    for module in (
        fig02,
        fig03,
        fig05,
        fig07,
        fig08,
        fig09,
        fig09_low,
        fig10,
        fig11,
        fig11_many,
        age,
        prioritized,
        adaptive,
        tbrm_rates,
        fig09_smollm2,
        fig03_smollm2,
        fig08_smollm2,
    )
}
"""Name → experiment, in the order of the page."""

ON_TEST_BED = [name for name in FIGURES if "smollm2" not in name]
"""Those whose runs take seconds."""
