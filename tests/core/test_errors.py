import ast
import inspect
import re

import pytest

from l2r2 import errors

CLASSES = {name: item for name, item in vars(errors).items() if inspect.isclass(item) and issubclass(item, Exception)}


def drawn_tree() -> dict[str, str | None]:
    """Error → parent, as the module's docstring draws it."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ((?:│   |    )*(?:├── |└── )?)(\w+)", line)
        if found is None:
            continue
        depth = len(found.group(1)) // 4
        path[depth:] = [found.group(2)]
        parents[found.group(2)] = path[depth - 1] if depth else None
    return parents


def test_the_tree_in_the_docstring_is_the_tree_in_code():
    coded = {name: item.__bases__[0].__name__ if name != "L2R2Error" else None for name, item in CLASSES.items()}
    assert drawn_tree() == coded


def test_the_second_base_in_the_docstring_is_real():
    assert "InputError (ValueError)" in (errors.__doc__ or "")
    assert errors.InputError.__bases__ == (errors.L2R2Error, ValueError)


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "L2R2Error"])
def test_every_error_is_an_l2r2_error_with_a_docstring(name):
    assert issubclass(CLASSES[name], errors.L2R2Error)
    assert CLASSES[name].__doc__


def test_the_module_holds_nothing_else():
    body = ast.parse(inspect.getsource(errors)).body
    assert {node.name for node in body if isinstance(node, ast.ClassDef)} == set(CLASSES)
