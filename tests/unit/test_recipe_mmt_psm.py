"""The recipe of mmt-psm holds the paper's constants and its tables (METHODS 5.2)."""

from __future__ import annotations

import math

import pytest

from cytopipe.methods.mmt_psm import MmtPsm
from cytopipe.recipes import load_recipe


def test_the_constants_are_the_papers():
    recipe = load_recipe("mmt-psm").recipe
    train, config = recipe.train, MmtPsm.Config.model_validate(recipe.train.config)

    assert (recipe.tile.tile_px, recipe.tile.overlap_px) == (1000, 750)
    assert (train.optimiser, train.lr, train.momentum, train.weight_decay) == ("sgd", 0.01, 0.9, 1e-4)
    assert (train.schedule, train.lr_steps, train.lr_gamma) == ("step", [5000, 7000], 0.1)
    assert (train.iterations, train.batch_labelled, train.ratio) == (8000, 4, 1)
    assert (train.labelled_view, train.classes) == ("psm-labelled", ["cytoplasm", "nucleus"])
    assert (config.burn_in, config.ramp_steps, config.rampdown_steps, config.alpha) == (1000, 250, 250, 0.99)
    assert (config.gamma, config.psm_weight, config.background_weight, config.bg_ratio) == (5, 1, 1.5, 1)
    assert (config.temperature, config.sharpen, config.ensemble, config.sensitivity) == (0.5, "inverse", "probs", "var")
    assert (config.teacher_copies, config.flipped_twins, config.student_copies) == (2, True, 1)
    assert (config.proposals_per_image, config.mask_score, config.psm_scale) == (512, 0.5, 1)
    assert config.adapter_weight_decay == 0


def test_every_row_of_the_table_stands_there_with_both_figures_and_its_switch():
    rows = load_recipe("mmt-psm").recipe.expected

    assert len(rows) == 2 * 14
    for row in rows:
        mean = math.fsum(row.class_percent.values()) / 2
        assert row.mean_percent == pytest.approx(mean, abs=0.0051), row.row  # printed to two decimals
    aji = {row.row: row for row in rows if row.metric == "aji50"}
    assert aji.keys() == {row.row for row in rows if row.metric == "mask_map_coco"}
    assert aji["MMT-PSM 100 %"].mean_percent == 66.94
    assert aji["MMT-PSM w/o L_mgd"].switches == {"train.config.gamma": 0}
    assert aji["MMT-PSM w/o L_psm"].switches == {"train.config.psm_weight": 0}
    assert aji["IR-Net 10 %"].switches == {"train.method": "supervised"}
    assert aji["MMT-PSM 10 %"].mean_percent - aji["IR-Net 10 %"].mean_percent == pytest.approx(3.01)


def test_the_small_one_differs_from_the_supervised_small_one_in_the_method_alone():
    small, plain = (load_recipe(name).recipe.train for name in ("mmt-psm-small", "supervised-small"))
    free = {"method", "config"}

    assert small.model_dump(exclude=free) == plain.model_dump(exclude=free)
    assert MmtPsm.Config.model_validate(small.config).burn_in < small.iterations
