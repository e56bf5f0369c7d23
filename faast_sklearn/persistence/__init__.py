"""Estimators in files without pickle, see docs/saving.md.

From the outside in: :mod:`saving` (paths, versions), :mod:`estimators` (classes, pipelines), :mod:`parameters` (of
constructors), :mod:`fields` and :mod:`arrays` (kinds of values), :mod:`archive` (bytes).
"""
