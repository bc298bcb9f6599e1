import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import l2r2

PACKAGE = Path(l2r2.__file__).parent
PACKAGES = sorted(path for path in PACKAGE.rglob("__init__.py") if path.read_text().strip())
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(PACKAGE)], "l2r2."))
HEAVY = {"torch", "scipy", "transformers", "mlflow", "sklearn", "pandas", "onnxruntime"}


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.name)
def test_all_lists_every_public_name(path):
    body = ast.parse(path.read_text()).body
    exported = [
        alias.asname for node in body if isinstance(node, ast.ImportFrom) for alias in node.names if alias.asname
    ]
    defined = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    defined += [node.target.id for node in body if isinstance(node, ast.AnnAssign)]
    public = [name for name in exported + defined if not name.startswith("_")]
    if not public:
        return
    module = importlib.import_module(".".join(path.parent.relative_to(PACKAGE.parent).parts))
    assert sorted(module.__all__) == sorted(public)
    assert list(module.__all__) == sorted(
        module.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name)
    )


@pytest.mark.parametrize("name", l2r2.__all__)
def test_every_public_name_is_there(name):
    assert getattr(l2r2, name).__module__.startswith(("l2r2.", "typing", "collections.abc"))


def loaded_by(statement: str) -> set[str]:
    """Which heavy packages a fresh interpreter has loaded after a statement."""
    program = f"import sys; {statement}; print(' '.join({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_importing_the_library_loads_nothing_heavy():
    assert loaded_by("import l2r2") == set()


def test_that_check_can_fail():
    assert "scipy" in loaded_by("import l2r2, scipy")


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert version("l2r2") == l2r2.__version__


def test_every_module_can_be_imported():
    """All in one fresh interpreter, since the heavy ones take seconds."""
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except Exception as error:\n"
        "        print(name, type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *MODULES], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
