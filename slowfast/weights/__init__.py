"""Files of weights: fetch, read, convert, load."""

import slowfast.models  # noqa: F401  first, as long as the two packages import each other
