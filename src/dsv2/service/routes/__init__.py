"""The routes, one file per subject; each has a function that makes its ``APIRouter``."""
