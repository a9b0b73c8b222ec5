"""The library of the model's C++: built once, by whoever comes first."""

import subprocess
import sys


def test_a_library_is_compiled_once_by_workers_that_come_at_once(tmp_path):
    code = (
        "import pathlib; from zfdist.model.kernels import cpp_library as compiled\n"
        f"pathlib.Path.home = classmethod(lambda c: pathlib.Path({str(tmp_path)!r}))\n"
        "before = compiled._compile\n"
        "def told(*a): print('compiled'); before(*a)\n"
        "compiled._compile = told; compiled.library()"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(worker.communicate()[0] for worker in workers) == ["", "compiled\n"]
    assert [worker.returncode for worker in workers] == [0, 0]
