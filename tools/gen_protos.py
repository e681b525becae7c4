"""Generates client/sec_protos from protos/. Reproducible: `make gen` twice changes nothing, and `make check` fails on drift.

The messages keep their proto names (package sec.v1, files sec/v1/*.proto); only the Python package is called sec_protos, because
the import package `sec` is the SEC node's own and the client never imports it.
"""

import re
import shutil
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Writes the generated package into the folder named by the first argument (default: client/)."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "client"
    scratch = out / "_gen"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    # Built aside and put in place at the end, so that whoever imports it meanwhile does not find half of it.
    package = scratch / "sec_protos"
    protos = sorted((ROOT / "protos").rglob("*.proto"))
    plugins = Path(sys.executable).parent
    status = protoc.main(
        [
            "protoc",
            f"-I{ROOT / 'protos'}",
            f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
            f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
            f"--python_out={scratch}",
            f"--grpc_python_out={scratch}",
            f"--mypy_out=quiet:{scratch}",
            f"--mypy_grpc_out=quiet:{scratch}",
            *(str(p) for p in protos),
        ]
    )
    if status:
        return int(status)
    for path in sorted((scratch / "sec").rglob("*.py*")):
        target = package / path.relative_to(scratch / "sec")
        text = path.read_text()
        if "_pb2_grpc" in target.name and not re.search(r"^class \w+Stub\b", text, flags=re.MULTILINE):
            continue  # its file has no service
        text = re.sub(r"^(\s*)from sec\.([\w.]+) import", r"\1from sec_protos.\2 import", text, flags=re.MULTILINE)
        text = re.sub(r"\bsec\.((?:\w+\.)*v1\.\w+_pb2)\b", r"sec_protos.\1", text)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    (package / "__init__.py").write_text('"""The generated messages and stubs of protos/sec. Regenerate with `make gen`."""\n')
    for folder in sorted(p for p in package.rglob("*") if p.is_dir()):
        (folder / "__init__.py").write_text("")
    (package / "py.typed").write_text("")
    shutil.rmtree(out / "sec_protos", ignore_errors=True)
    package.rename(out / "sec_protos")
    shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
