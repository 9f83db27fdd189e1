"""x"""
from . import _packages as _p
_p.tell()
