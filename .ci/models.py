"""The trained models and texts that acceptance, trust and the comparison of bytes run on; none of them is part of the
repository. UC_MODELS names the folder of models, by default ../shared/models; texts are in the folder `corpus` beside it.
"""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMED = os.environ.get("UC_MODELS")
MODELS = pathlib.Path(os.path.abspath(NAMED)) if NAMED else ROOT.parent / "shared" / "models"
CORPUS = MODELS.parent / "corpus"


def present():
    """Whether the models are there; says so where they are not, for checks go missing with them."""
    if MODELS.is_dir():
        return True
    if NAMED:
        sys.exit(f"UC_MODELS: there is no folder {MODELS}")
    print("!!! real models NOT TESTED: there is no ../shared/models !!!", flush=True)
    return False
