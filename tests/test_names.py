"""Names that a reader had to look up were replaced by the field's usual words; none of them comes back."""

import ast
from pathlib import Path

import retipair

NAMES = """
crew Processes ALONE first_alone any_now_and_then Way ways open_to next_smaller Work Counted CountedPairs LiveBytes
Job job make_job said_of_memory Painter painter paint Painted painted heard hears Lost lately culprit heed_lost
half_without_numbers Window Learner learner averaged running_average learn set_up take_step take_up facts_of
milestone is_milestone whole_state save_now stop_here whole partial_of seal damage mend told owned stoppable
Terminated in_order watched unsaid put_in_order part_of mistyped Entry of_split Seen Task Outcome Unusable
find_usable still_valid earlier_outcomes Drawn drawn read_drawn Gate gate Refusal Ledger ledger print_of
vessel_print pair_print Prints KeptPrints Measured Figures figures_of Doubt doubts doubts_of same_eyes fallen
manifolds System Description at_measured likeness How
"""
REPLACED = frozenset(NAMES.split())


def names(tree: ast.AST) -> set[str]:
    """All names that a module defines or assigns: functions, classes, parameters, variables, attributes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return {name.lstrip("_") for name in found}


def test_replaced_names_are_gone() -> None:
    source = Path(retipair.__file__).parent
    modules = sorted(source.rglob("*.py"))
    again = {
        path.relative_to(source).as_posix(): sorted(names(ast.parse(path.read_text())) & REPLACED) for path in modules
    }
    assert {path: found for path, found in again.items() if found} == {}
    assert not REPLACED & {path.stem for path in modules}
