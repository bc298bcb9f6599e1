"""What a request says opens nothing, and a bundle with a pickle in it is refused before anything is unpickled."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from l2r2.bundle import Bundle, load_bundle
from l2r2.errors import ArtifactError
from l2r2.files import sha256
from tests.tiny import RED, encode, make_photo, make_tiny_bundle

WATCHED = """
import sys
from pathlib import Path
from l2r2.bundle import load_bundle
from l2r2_serving.answer import Options
from l2r2_serving.bundles import open_bundle
from l2r2_serving.convert import read_metadata, read_options, to_response
from l2r2_serving.v1 import recognition_pb2 as pb

opened = open_bundle(load_bundle(Path(sys.argv[1])))
photo = Path(sys.argv[2]).read_bytes()

def answer(word):
    request = pb.RecognizeRequest(image=photo, habitat=word, substrate=word, metadata={word: word, "x": word})
    request.thumbnail_px, request.mask = 64, True
    return to_response(opened.answer(request.image, read_metadata(request), 5, read_options(request)))

answer("forest")  # what is imported late is imported now
seen = []

def hook(event, arguments):
    if event in {"open", "os.listdir", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.fork", "exec"}:
        seen.append((event, str(arguments[0])[:80]))

sys.addaudithook(hook)
for word in ("/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x", "../../manifest.json", "models:/a@b"):
    answer(word)
print(seen)
"""


def test_no_path_and_no_address_is_taken_from_a_request(bundle: Bundle, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode(make_photo(RED)))
    words = [sys.executable, "-c", WATCHED, str(bundle.folder), str(photo)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stdout + done.stderr


class Harm:
    """What would run if it were unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("import builtins; builtins.unpickled = True",)


@pytest.mark.parametrize("where", ["fusion.npz", "priors.parquet"])
def test_a_pickle_in_a_bundle_is_never_unpickled(where: str, tmp_path: Path) -> None:
    import builtins

    bundle = make_tiny_bundle(tmp_path / "b")
    smuggled = tmp_path / "smuggled"
    if where == "fusion.npz":
        with smuggled.open("wb") as file:
            np.savez(file, t=np.array([Harm()], dtype=object))
    else:
        smuggled.write_bytes(pickle.dumps(Harm()))
    old = sha256(bundle.folder / where)
    smuggled.replace(bundle.folder / where)
    manifest = bundle.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(old, sha256(bundle.folder / where)))  # who smuggles can count
    with pytest.raises(ArtifactError):
        load_bundle(bundle.folder).recognizer()
    assert not hasattr(builtins, "unpickled")
