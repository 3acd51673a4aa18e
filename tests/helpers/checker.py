"""Shapes and types of public signatures are checked while testing; int counts as float (PEP 484)."""

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
