"""Pictures of sagas: from the text of a graph to a file. The drawing is done by the program "dot" of Graphviz."""

import os

from secctl.errors import BadInput

FORMATS = ("svg", "png", "dot")


def drawing_format(path: str) -> str:
    """What the end of a file's name asks for. Raises `BadInput`."""
    form = os.path.splitext(path)[1].removeprefix(".").lower()
    if form not in FORMATS:
        raise BadInput(f'"{path}" does not say what to draw: let its name end with .svg, .png or .dot.')
    return form


def draw(text: str, form: str, path: str) -> None:
    """Writes the picture of a graph. Raises `BadInput`; nothing is written then, unless the disk refuses in the middle."""
    data = text.encode() if form == "dot" else _drawn(text, form, path)
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as e:
        raise BadInput(f'"{path}" cannot be written: {e.strerror or e}.') from None


def _drawn(text: str, form: str, path: str) -> bytes:
    advice = "or write a .dot file, and draw that where Graphviz is"
    try:
        import graphviz  # type: ignore[import-untyped] # it has no types; only here, so that a .dot file needs nothing
    except ImportError:
        raise BadInput(f'"{path}" needs the Python package graphviz: pip install "sec-cluster[cli]", {advice}.') from None
    try:
        return bytes(graphviz.Source(text).pipe(format=form, quiet=True))
    except graphviz.ExecutableNotFound:
        raise BadInput(
            f'"{path}" is drawn by the program "dot", which is not on the PATH: install Graphviz '
            f"(apt install graphviz, dnf install graphviz, brew install graphviz), {advice}."
        ) from None
    except graphviz.CalledProcessError as e:
        reason = " ".join((e.stderr or b"").decode(errors="replace").split()) or f"it ended with code {e.returncode}"
        raise BadInput(f'The program "dot" could not draw "{path}": {reason}.') from None
