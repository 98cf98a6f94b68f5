"""AudioSet's post-processing of VGGish embeddings: a PCA, and a byte for each number.

    vggish_pca_params.npz ─▶ read ─▶ Postprocess: embeddings [n, 128] ─▶ 0 … 255 [n, 128]

As the embeddings of AudioSet and YouTube-8M were published, so that own ones can be compared with them.
"""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from birdtune.errors import InputError, shown
from birdtune.runtime.files import require_file
from birdtune.runtime.storage import read_error

SIZE = 128  # numbers in an embedding of VGGish
# What is beyond is cut off; between, numbers are spaced evenly.
_LIMIT = 2.0
_SHAPES = {"pca_eigen_vectors": (SIZE, SIZE), "pca_means": (SIZE, 1)}
_EXPECTED = "the vggish_pca_params.npz that Google published with VGGish"


@dataclass(frozen=True, eq=False)
class Postprocess:
    """A PCA and its quantisation.

    Attributes:
        eigenvectors: [128, 128], one a row; means: [128].
    """

    eigenvectors: npt.NDArray[np.float64]
    means: npt.NDArray[np.float64]

    def __call__(self, embeddings: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
        """Embeddings [n, 128] → their components, from -2 to 2 in a byte each. [n, 128]"""
        components = (embeddings - self.means) @ self.eigenvectors.T
        return np.asarray((np.clip(components, -_LIMIT, _LIMIT) + _LIMIT) * (255 / (2 * _LIMIT)), np.uint8)

    @property
    def digest(self) -> str:
        """SHA-256 of what it computes."""
        return hashlib.sha256(self.eigenvectors.tobytes() + self.means.tobytes()).hexdigest()


def read(path: Path, setting: str) -> Postprocess:
    """The parameters of a file; nothing in it is executed.

    Args:
        setting: that names it, e.g. "--postprocess".

    Raises:
        InputError: there is no such file, it is no .npz, or has no such arrays.
    """
    require_file(path, setting, _EXPECTED)
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name, shape in _SHAPES.items():
                if name not in archive.files:
                    there = ", ".join(shown(each) for each in archive.files[:5])
                    raise InputError(f"{setting} {shown(path)}: has no array `{name}`, but {there}. Give {_EXPECTED}.")
                found = archive[name]
                if found.shape != shape or found.dtype.kind != "f" or not np.isfinite(found).all():
                    what = f"{found.dtype} {list(found.shape)}"
                    raise InputError(
                        f"{setting} {shown(path)}: its array `{name}` is {what}; expected are finite numbers "
                        f"{list(shape)}. Give {_EXPECTED}."
                    )
                arrays[name] = found.astype(np.float64)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, TypeError) as fault:
        # TypeError: np.load gives a lone array where the file is an .npy.
        message = f"{setting} {shown(path)}: is no .npz of arrays ({shown(str(fault)[:100])}). Give {_EXPECTED}."
        raise read_error(fault, path, message) from fault
    return Postprocess(arrays["pca_eigen_vectors"], arrays["pca_means"][:, 0])
