"""The planted bugs of mutants.py stand in the kernels' code, where a comment can be reworded without losing one."""

import pytest
from mutants import ROOT, SUITES, Mutant, no_barrier


@pytest.mark.parametrize("suite", SUITES)
def test_planted_bugs_stand_in_code(suite):
    for mutant in SUITES[suite][1]:
        text = (ROOT / "cuda_src" / mutant.file).read_text()
        unchanged = Mutant(mutant.name, mutant.file, mutant.old, mutant.old).plant(text)
        assert mutant.plant(text) != unchanged, f"{mutant.name} changes nothing"
        assert "//" not in mutant.old, f"{mutant.name} asks for a comment"


def test_comment_is_no_place_for_a_bug():
    text = "a = b;  // a = c\n"
    with pytest.raises(ValueError, match=r"code of some.cu does not contain 'a = c'"):
        Mutant("in a comment", "some.cu", "a = c", "a = d").plant(text)
    with pytest.raises(ValueError, match="does not contain ''"):
        Mutant("empty", "some.cu", "", "a = d").plant(text)


def test_bug_is_planted_across_rewrapped_lines_and_only_once():
    text = "__syncthreads();  // why\n  x = 1;\n__syncthreads();\nx = 1;\n"
    assert no_barrier("", "some.cu", "x = 1;").plant(text) == "x = 1;\n__syncthreads();\nx = 1;\n"
