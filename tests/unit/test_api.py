"""The Python API: verbs at the top, whatever was imported before."""

import subprocess
import sys


def test_verbs_stay_callable_after_the_rooms_of_the_same_names_are_imported():
    code = (
        "import cytopipe, cytopipe.evaluate.tables; from cytopipe.infer import plan_windows;"
        "from cytopipe.train import TrainSettings;"
        "assert all(callable(getattr(cytopipe, name)) for name in cytopipe.__all__ if name != '__version__')"
    )

    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, cytopipe; print(sorted({'torch', 'numpy', 'cv2', 'pyarrow'} & set(sys.modules)))"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
