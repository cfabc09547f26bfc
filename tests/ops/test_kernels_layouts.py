"""One table of layouts for Python and C++: what does not agree with it does not compile, and says why."""

from pathlib import Path

import pytest

from modelwright.ops.backends import cpu as kernels
from modelwright.ops.backends.cpu import build, compiler, layouts

needs_compiler = pytest.mark.skipif(not kernels.available(), reason=f"no kernels: {kernels.reason()}")


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """The one source of a library, to be written."""
    (tmp_path / "sources").mkdir()
    return tmp_path / "sources" / "rows.cpp"


def compile_with(header: str, kernel: Path) -> Path:
    """The library of a source that includes ``layouts.h``."""
    cache = kernel.parent.parent / "cache"
    return compiler.compiled(kernel.parent, {"layouts.h": header}, compiler.find_compiler(), [cache])


def test_each_function_of_the_table_is_one_of_the_sources():
    folder = Path(build.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("*.cpp"))
    for function in layouts.FUNCTIONS:
        assert f" {function.name}(" in text, function.name


@needs_compiler
def test_the_structures_lie_as_they_are_packed(kernel):
    kernel.write_text('#include "layouts.h"\n')
    assert compile_with(layouts.header(), kernel).exists()


@needs_compiler
@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("int64_t group;", "int64_t group, last;", "Weight is not as large as layouts.py packs it"),
        ("QueryRows queries[2];", "QueryRows queries[3];", "Decode is not as large as layouts.py packs it"),
        ("int64_t in;\n    int64_t group;", "int64_t group, in;", "Weight.in lies elsewhere than layouts.py packs it"),
    ],
)
def test_a_structure_that_is_laid_out_otherwise_does_not_compile(kernel, right, wrong, said):
    kernel.write_text('#include "layouts.h"\n')
    assert right in layouts.header()
    with pytest.raises(compiler.NoKernels, match=f"static assertion failed: {said}"):
        compile_with(layouts.header().replace(right, wrong, 1), kernel)


@needs_compiler
def test_a_kernel_that_takes_other_arguments_does_not_compile(kernel):
    kernel.write_text('#include "layouts.h"\nextern "C" void prefill(const Prefill*, int64_t) {}\n')
    with pytest.raises(compiler.NoKernels, match=r"conflicting declaration .*prefill\(const Prefill\*, int64_t\)"):
        compile_with(layouts.header(), kernel)


def test_nested_structures_are_padded_as_c_pads_them():
    kind, number = layouts.Field("int32_t", "kind"), layouts.Field("int64_t", "number")
    inner = layouts.Structure("Inner", (number, kind))
    outer = layouts.Structure("Outer", (kind, layouts.Field(inner, "pair", 2), layouts.Field("float", "last")))
    assert inner.size == 16 and inner.offsets() == {"number": 0, "kind": 8}
    assert outer.size == 48 and outer.offsets() == {"kind": 0, "pair": 8, "last": 40}
    assert outer.pack(1, 2, 3, 4, 5, 6.0)[24:32] == (4).to_bytes(8, "little")
