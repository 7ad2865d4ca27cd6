"""UniFormer video backbones: training, validation and multi-view testing."""

import warnings

__version__ = "0.1.0"

# fvcore scripts a few functions when it is imported; nothing a user of this package can do about it
warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)
