"""What every test shares: no network, and no time limit per hypothesis example, which a busy machine would break."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test that reaches for the hub fails at once

from hypothesis import settings

settings.register_profile("modelwright", deadline=None)
settings.load_profile("modelwright")
