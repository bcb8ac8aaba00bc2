"""The table of methods: what `train --method` finds, and under which name."""

from __future__ import annotations

import pytest

from cytopipe.core.errors import UserError
from cytopipe.methods import METHODS, find_method


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_of_the_table_is_found_under_its_own_name_and_describes_each_setting(name):
    method = find_method(name)

    assert method.name == name
    assert method.paper
    assert method.tasks <= {"detection", "instance", "semantic"}
    assert all(field.description for field in method.Config.model_fields.values())
    assert "unsup_weight" in method.Config.model_fields


def test_an_unknown_method_names_the_nearest_one():
    with pytest.raises(UserError, match="did you mean 'dual-alignment'"):
        find_method("dual-alignement")
